"""What goes on inside: held against loops, finite differences and cases whose answer is known."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import tiny
import tiny_git
import torch

from gitdistill.hooks import record
from gitdistill.inspection import analysis
from gitdistill.world.scenes import Thing

TEACHER, STUDENT = tiny.teacher(), tiny.student().eval()
BOTH = pytest.mark.parametrize("model", [TEACHER, STUDENT], ids=["teacher", "student"])
FRAMES = torch.randint(
    0, 256, (tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE), generator=torch.manual_seed(1), dtype=torch.uint8
)
TOKENS = torch.tensor([2, 40, 50, 60, 3])
T = len(TOKENS)
WATCHED = {TEACHER: "model.layers.*.attention.softmax", STUDENT: "layers.*.cross_attention.softmax"}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Elsewhere(torch.Tensor):
    """As on MPS: has no double precision, and mixes with no tensor of the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return arguments[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(function, types, arguments, options or {})
        doubles = torch.is_tensor(found) and found.dtype == torch.float64
        if doubles or any(type(value) is torch.Tensor and value.dim() for value in arguments):
            raise TypeError(f"{function} is not for this device")
        return found


# -- where a captioner looks


@BOTH
def test_look_gives_what_a_hook_catches(model):
    looks = analysis.look(model, FRAMES, TOKENS)
    assert looks.maps.shape == (2, looks.maps.shape[1], T - 1, 2, 2, 2)
    with record(model, WATCHED[model]) as seen, torch.no_grad():
        logits = model(FRAMES[None], TOKENS[None]).logits[0]
    lead = 1 if model is TEACHER else 0  # the class token of each frame
    for layer, calls in enumerate(seen.values()):
        row = calls[-1][0, :, 2]  # [H, S], the row that predicts the third word
        for f in range(2):
            cells = row[:, f * (4 + lead) + lead :][:, :4].unflatten(1, (2, 2))
            torch.testing.assert_close(looks.maps[layer, :, 2, f], cells)
    for t in range(T - 1):
        assert looks.log_probs[t] == pytest.approx(float(logits[t].log_softmax(-1)[TOKENS[t + 1]]), abs=1e-5)
    torch.testing.assert_close(looks.words().sum((1, 2, 3)), torch.ones(T - 1))


@BOTH
def test_mixing_steps_are_distributions_that_keep_to_the_mask(model):
    mixing = analysis.look(model, FRAMES, TOKENS).mixing
    image = mixing.shape[1] - T
    assert len(mixing) == (2 if model is TEACHER else 1 + 2 * 2)
    torch.testing.assert_close(mixing.sum(-1), torch.ones(mixing.shape[:2]))
    assert (mixing[:, :image, image:] == 0).all()  # the image never sees the text
    assert (mixing[:, image:, image:].triu(1) == 0).all()  # a word never sees later ones
    assert all((step[image:, :image] > 0).any() for step in mixing[:: len(mixing) - 1][-1:])


def test_mixing_is_the_recorded_attention():
    with record(STUDENT, ["mixer.0.attention.softmax", "layers.1.*attention.softmax"]) as seen:
        STUDENT(FRAMES[None], TOKENS[None])
    mixer, self_attention, cross = (calls[0][0].mean(0) for calls in seen.values())
    mixing = analysis.look(STUDENT, FRAMES, TOKENS).mixing
    torch.testing.assert_close(mixing[0, :-T, :-T], mixer)
    torch.testing.assert_close(mixing[3, -T:, -T:], self_attention)
    torch.testing.assert_close(mixing[4, -T:, :-T], cross)


def test_rollout_by_hand():
    first = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    second = torch.tensor([[1.0, 0.0], [0.8, 0.2]])
    expected = torch.tensor([[0.6, 0.4], [0.39, 0.61]])  # half of a token goes round each step
    torch.testing.assert_close(analysis.rollout(torch.stack([first, second])), expected)
    later = analysis.rollout(torch.stack([first, second]), first=1)
    torch.testing.assert_close(later, (second + torch.eye(2)) / 2)
    with pytest.raises(ValueError, match="first must be one of the 2 steps, 0 to 1; got 2"):
        analysis.rollout(torch.stack([first, second]), first=2)


@BOTH
def test_gradient_attention_is_slope_times_weight(model):
    """Against finite differences: one weight of one head made larger, through a hook that replaces the output."""
    model = model.model if model is TEACHER else model
    name = WATCHED.get(model, "layers.*.attention.softmax").replace("*", "1")  # the last layer
    maps, t = analysis.gradient_attention(model, FRAMES, TOKENS), 2
    assert maps.shape == (T - 1, 2, 2, 2) and (maps >= 0).all()
    lead = 0 if model is STUDENT else 1

    def log_prob(step, head, place):
        def push(module, inputs, output):
            output = output.clone()
            output[0, head, t, place] += step
            return output

        handle = model.get_submodule(name).register_forward_hook(push)
        with torch.no_grad():
            value = model(FRAMES[None], TOKENS[None]).logits[0, t].double().log_softmax(-1)[TOKENS[t + 1]]
        handle.remove()
        return float(value)

    with record(model, name) as seen, torch.no_grad():
        model(FRAMES[None], TOKENS[None])
    weights = seen[name][-1][0, :, t]
    by_hand = torch.zeros(2, 4)
    for f in range(2):
        for cell in range(4):
            place = f * (4 + lead) + lead + cell
            for head in range(len(weights)):
                slope = (log_prob(1e-2, head, place) - log_prob(-1e-2, head, place)) / 2e-2
                by_hand[f, cell] += max(0.0, slope * float(weights[head, place])) / len(weights)
    # the layer below adds its own part, which is not below zero
    assert (maps[t].flatten(1) - by_hand > -1e-3).all()
    alone = analysis._names
    try:
        analysis._names = lambda model: (name, alone(model)[1])
        only_last = analysis.gradient_attention(model, FRAMES, TOKENS)[t].flatten(1)
    finally:
        analysis._names = alone
    torch.testing.assert_close(only_last, by_hand, atol=2e-3, rtol=0.02)


@BOTH
def test_gradient_attention_needs_no_grad_mode_and_leaves_nothing(model):
    expected = analysis.gradient_attention(model, FRAMES, TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(analysis.gradient_attention(model, FRAMES, TOKENS), expected)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@BOTH
def test_occlusion_covers_one_place_in_all_frames(model):
    drops = analysis.occlusion(model, FRAMES, TOKENS, (4, 4), reach=0, batch=3)
    wide = analysis.occlusion(model, FRAMES, TOKENS, (4, 4))
    assert drops.shape == wide.shape == (T - 1, 4, 4)
    before = analysis.look(model, FRAMES, TOKENS).log_probs
    for found, rows, columns in ((drops, slice(24, 32), slice(8, 16)), (wide, slice(16, 32), slice(0, 24))):
        covered = FRAMES.clone()
        for frame, whole in zip(covered, FRAMES):
            frame[:, rows, columns] = whole.flatten(1).median(1).values[:, None, None]
        after = analysis.look(model, covered, TOKENS).log_probs
        torch.testing.assert_close(found[:, 3, 1], before - after, atol=1e-4, rtol=1e-4)


@BOTH
def test_explanations_have_one_shape(model):
    maps = analysis.explain(model, FRAMES, TOKENS)
    assert list(maps) == ["raw attention", "rollout", "gradient × attention", "occlusion"]
    assert {tuple(values.shape) for values in maps.values()} == {(T - 1, 2, 2)}


def test_any_git_and_a_single_image_will_do():
    git = tiny_git.random_git()
    pixels, tokens = tiny_git.random_inputs(1)
    maps = analysis.explain(git, pixels[0], tokens[0])
    assert {tuple(values.shape) for values in maps.values()} == {(5, 4, 4)}
    with pytest.raises(ValueError, match=r"give one clip .* got \[1, 3, 16, 16\] and \[1, 6\]"):
        analysis.look(git, pixels, tokens)


@BOTH
def test_clips_of_the_cpu_go_to_the_model(model):
    """Torch's meta device refuses tensors of the CPU as a GPU does."""
    there = deepcopy(model).to("meta")
    looks = analysis.look(there, FRAMES, TOKENS)
    name = "model.image_encoder.layers.1" if model is TEACHER else "memory_norm"
    found = [looks.words(), looks.rolled(), looks.log_probs]
    found += [analysis.gradient_attention(there, FRAMES, TOKENS)]
    found += [analysis.occlusion(there, FRAMES, TOKENS, (2, 2))]
    found += [analysis.features(there, name, FRAMES[None])[name]]
    assert {value.device.type for value in found} == {"meta"}


def test_rank_correlation_by_hand():
    x = torch.tensor([1.0, 2.0, 2.0, 9.0])
    assert analysis.rank_correlation(x, x**3) == pytest.approx(1)
    assert analysis.rank_correlation(x, -x) == pytest.approx(-1)
    ranks = torch.tensor([[1, 2.5, 2.5, 4], [4, 1, 3, 2]])
    expected = float(torch.corrcoef(ranks)[0, 1])
    assert analysis.rank_correlation(x, torch.tensor([7.0, 0.0, 3.0, 1.0])) == pytest.approx(expected)


@BOTH
def test_shuffled_keeps_the_numbers_and_forgets_their_places(model):
    copy = analysis.shuffled(model)
    pairs = list(zip(copy.parameters(), model.parameters()))
    assert all(torch.equal(a.flatten().sort()[0], b.flatten().sort()[0]) for a, b in pairs)
    given = [m(FRAMES[None], TOKENS[None]).logits for m in (model, copy, analysis.shuffled(model))]
    assert not torch.allclose(given[0], given[1], atol=0.1) and torch.equal(given[1], given[2])
    assert not copy.training


# -- does it look at the right thing?


def test_pointing_shares_ties_and_needs_the_strongest_cell():
    cells = torch.zeros(1, 2, 2, dtype=torch.bool)
    cells[0, 1, 1] = True
    assert analysis.pointing(cells.float(), cells) == 1
    assert analysis.pointing(1 - cells.float(), cells) == 0
    assert analysis.pointing(torch.ones(1, 2, 2), cells) == 0.25


def test_cells_of_a_mask():
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, :2, :2] = True  # 4 of 100 pixels of the first cell
    mask[0, 10:, 10:11] = False
    mask[0, 19, 17:] = True  # 3 of 100 pixels of the last one
    assert analysis.cells_of(mask, (2, 2)).tolist() == [[[True, False], [False, False]]]


def scene(*things):
    return SimpleNamespace(things=[Thing(*thing) for thing in things])


def test_referents_are_unambiguous():
    two = scene(("cup", "red", "small", "left"), ("plane", "blue", "small", "left"))
    words = ["a", "red", "mug", "and", "blue", "airplane", "cat"]
    named = [None, ("colour", 0), ("object", 0), None, ("colour", 1), ("object", 1), None]
    assert analysis.referents(words, two) == named
    alike = scene(("cup", "red", "small", "left"), ("plane", "red", "small", "left"))
    assert analysis.referents(["red", "plane"], alike) == [None, ("object", 1)]


def clip_with_a_cup():
    masks = torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    masks[0, 1, :16, :16] = True  # the first cell of the second frame
    return SimpleNamespace(
        frames=FRAMES, masks=masks, captions=["a red cup"], scene=scene(("cup", "red", "small", "still"))
    )


def test_ground_scores_a_perfect_and_an_even_map():
    def perfect(model, frames, tokens):
        values = torch.zeros(len(tokens) - 1, 2, 2, 2)
        values[:, 1, 0, 0] = 1
        return values

    rows = analysis.ground(None, [clip_with_a_cup()] * 2, TEACHER.tokenizer, perfect)
    expected = {"clip": 0, "word": "red", "kind": "colour", "hit": 1.0, "other": None}
    expected |= {"share": 1.0, "chance": 0.125}
    assert rows[0] == expected and [row["clip"] for row in rows] == [0, 0, 1, 1]
    even = lambda model, frames, tokens: torch.ones(len(tokens) - 1, 2, 2, 2)  # noqa: E731
    for row in analysis.ground(None, [clip_with_a_cup()], TEACHER.tokenizer, even):
        assert row["hit"] == row["share"] == row["chance"]
    there = lambda *clip: perfect(*clip).as_subclass(Elsewhere)  # noqa: E731
    assert analysis.ground(None, [clip_with_a_cup()] * 2, TEACHER.tokenizer, there) == rows


def test_ground_tells_whether_the_model_points_at_the_other_thing():
    clip = clip_with_a_cup()
    plane = torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    plane[0, 1, :, :16] = True  # two cells, one of them the cup's
    clip.masks = torch.cat([clip.masks, plane])
    clip.scene.things.append(Thing("plane", "blue", "small", "still"))

    def looks(row):
        def maps(model, frames, tokens):
            values = torch.zeros(len(tokens) - 1, 2, 2, 2)
            values[:, 1, row, 0] = 1
            return values

        return [(row["hit"], row["other"]) for row in analysis.ground(None, [clip], TEACHER.tokenizer, maps)]

    assert set(looks(0)) == {(1.0, 0.0)}  # a cell that shows both is the named thing's
    assert set(looks(1)) == {(0.0, 1.0)}


@BOTH
def test_ground_reads_the_row_that_predicts_the_word(model):
    clip = clip_with_a_cup()
    tokens = torch.tensor(TEACHER.tokenizer("a red cup")["input_ids"])
    maps = analysis.look(model, clip.frames, tokens).words()
    rows = analysis.ground(model, [clip], TEACHER.tokenizer)
    assert [row["word"] for row in rows] == ["red", "cup"]
    for row, t in zip(rows, (1, 2)):  # tokens: start, a, red, cup, end
        assert row["share"] == pytest.approx(float(maps[t, 1, 0, 0]), rel=1e-5)


def test_bootstrap_draws_whole_clips():
    mean, low, high = analysis.bootstrap([1.0] * 50 + [0.0] * 50, list(range(100)))
    assert mean == 0.5 and 0.38 < low < 0.43 and 0.57 < high < 0.62  # 0.5 +- 1.96 * 0.05
    _, low, high = analysis.bootstrap([1.0] * 50 + [0.0] * 50, [k // 25 for k in range(100)])
    assert low == 0 and high == 1  # four clips say much less
    assert analysis.bootstrap([2.0, 2.0], [0, 1]) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="nothing to average"):
        analysis.bootstrap([], [])


def test_scoreboard_averages_by_kind():
    rows = [
        {"clip": k, "kind": kind, "hit": float(k % 2), "chance": 0.1}
        for k in range(4)
        for kind in ("colour", "object")
    ]
    board = analysis.scoreboard(rows)
    assert list(board) == ["object", "colour"] and board["colour"][0] == 0.5 and board["colour"][3] == 4
    assert analysis.scoreboard(rows, "chance")["object"] == pytest.approx((0.1, 0.1, 0.1, 4))
    for row in rows:
        row["other"] = None if row["kind"] == "colour" or row["clip"] == 0 else 0.5
    assert analysis.scoreboard(rows, "other") == {"object": (0.5, 0.5, 0.5, 3)}


# -- how alike are two networks?


@BOTH
def test_features_are_what_hooks_catch_clip_by_clip(model):
    clips = torch.stack([FRAMES, FRAMES.flip(-1), FRAMES.flip(0)])
    name = "model.image_encoder.layers.1" if model is TEACHER else "memory_norm"
    found = analysis.features(model, name, clips, batch=2)[name]
    assert found.shape[:3] == (3 * tiny.FRAMES, 2, 2)
    with record(model, name) as seen, torch.no_grad():
        model(clips[1:2], TOKENS[None])
    (caught,) = seen[name]
    lead = 1 if model is TEACHER else 0
    caught = caught.reshape(tiny.FRAMES, 4 + lead, -1)[:, lead:].unflatten(1, (2, 2))
    torch.testing.assert_close(found[tiny.FRAMES : 2 * tiny.FRAMES], caught, atol=1e-4, rtol=1e-4)
    pooled = analysis.features(model, name, clips, pooled=True)[name]
    torch.testing.assert_close(pooled, found.mean((1, 2)), atol=1e-4, rtol=1e-4)


def by_loops(x, y):
    """The unbiased HSIC of Song et al. 2012, equation 5, normalised."""

    def hsic(k, m):
        n = len(k)
        k, m = (a - a.diag().diag() for a in (k, m))
        ones = torch.ones(n, dtype=k.dtype)
        parts = (k @ m).trace() + ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (parts - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))

    k, m = x.double() @ x.double().T, y.double() @ y.double().T
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def test_cka_is_the_formula_and_knows_alike_from_unrelated():
    x, y = random(30, 5), random(30, 9, seed=1) + 2
    assert analysis.cka(x, y) == pytest.approx(by_loops(x, y), abs=1e-9)
    turn = torch.linalg.qr(random(5, 5, seed=2))[0]
    assert analysis.cka(x, 3 * x @ turn + 1) == pytest.approx(1, abs=1e-6)
    wide = analysis.cka(random(64, 400), random(64, 300, seed=3))
    assert abs(wide) < 0.1  # the plain form gives 0.86
    grid = analysis.cka_map([x, y], [y, x, x + y[:, :5]])
    assert grid.shape == (2, 3) and grid[0, 1] == pytest.approx(1) == grid[1, 0]
    with pytest.raises(ValueError, match=r"same images for all layers.*got \[29, 30\]"):
        analysis.cka_map([x], [y[:29]])


def test_ridge_finds_a_linear_map():
    x = random(200, 4)
    weight = random(4, 3, seed=1)
    into = analysis.ridge(x, x @ weight + 5, strength=1e-9)
    torch.testing.assert_close(into(x[:7]), x[:7] @ weight + 5, atol=1e-4, rtol=1e-4)
    strong = analysis.ridge(x, x @ weight + 5, strength=1e9)
    torch.testing.assert_close(strong(x[:2]), (x @ weight + 5).mean(0).expand(2, 3), atol=1e-4, rtol=1e-4)


def test_joint_pca_gives_two_views_of_one_thing_the_same_colours():
    hidden = random(300, 3) * torch.tensor([5.0, 2.0, 1.0])
    views = {"teacher": hidden @ random(3, 8, seed=1), "student": hidden @ random(3, 6, seed=2)}
    fit = {name: values[:200] for name, values in views.items()}
    shown = {name: values[200:].view(5, 20, -1) for name, values in views.items()}
    colours, explained = analysis.joint_pca(fit, shown)
    assert colours["teacher"].shape == (5, 20, 3)
    torch.testing.assert_close(colours["student"], colours["teacher"], atol=0.05, rtol=0)
    assert colours["teacher"].std((0, 1)).min() > 0.1
    assert float(explained.sum()) == pytest.approx(1, abs=1e-6)
    assert explained.tolist() == sorted(explained.tolist(), reverse=True)
    with pytest.raises(ValueError, match="must name the same networks"):
        analysis.joint_pca(fit, {"teacher": shown["teacher"]})


def test_statistics_are_computed_on_the_cpu():
    x, y = random(60, 4), random(60, 3, seed=1)
    far = [value.as_subclass(Elsewhere) for value in (x, y)]
    assert analysis.rank_correlation(far[0][:, 0], far[1][:, 0]) == analysis.rank_correlation(
        x[:, 0], y[:, 0]
    )
    assert torch.equal(analysis.cka_map(far, far), analysis.cka_map([x, y], [x, y]))
    assert torch.equal(analysis.ridge(*far)(far[0]), analysis.ridge(x, y)(x))
    there, here = ({"a": a, "b": b} for a, b in (far, (x, y)))
    for name, colours in analysis.joint_pca(here, here)[0].items():
        assert torch.equal(analysis.joint_pca(there, there)[0][name], colours)
