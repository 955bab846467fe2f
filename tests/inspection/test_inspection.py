"""What happens inside a captioner: compared with loops, finite differences and cases whose answer is known."""

from copy import deepcopy
from itertools import product
from types import SimpleNamespace

import pytest
import tiny
import tiny_git
import torch

from gitdistill import inspection
from gitdistill.hooks import record
from gitdistill.world import Toy

TEACHER, STUDENT = tiny.teacher(), tiny.student().eval()
BOTH = pytest.mark.parametrize("model", [TEACHER, STUDENT], ids=["teacher", "student"])
FRAMES = tiny.clips(1, seed=1)[0]
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


def test_a_network_in_training_is_looked_at_as_it_is_used_and_not_changed():
    student = tiny.student().train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for look in (inspection.attention_maps, inspection.explain):
        look(student, FRAMES, TOKENS)
    seen = inspection.features(student, "memory_norm", FRAMES[None])
    assert all(module.training for module in student.modules())
    torch.testing.assert_close(dict(student.state_dict()), before, atol=0, rtol=0)
    expected = inspection.features(student.eval(), "memory_norm", FRAMES[None])
    torch.testing.assert_close(seen, expected, atol=0, rtol=0)


@BOTH
def test_attention_maps_are_what_a_hook_catches(model):
    seen = inspection.attention_maps(model, FRAMES, TOKENS)
    assert seen.maps.shape == (2, seen.maps.shape[1], T - 1, 2, 2, 2)
    with record(model, WATCHED[model]) as caught, torch.no_grad():
        logits = model(FRAMES[None], TOKENS[None]).logits[0]
    lead = 1 if model is TEACHER else 0  # the class token of each frame
    for layer, calls in enumerate(caught.values()):
        row = calls[-1][0, :, 2]  # [H, S], of the position that predicts the third word
        frames = row[:, : 2 * (4 + lead)].unflatten(1, (2, -1))[..., lead:].unflatten(-1, (2, 2))
        torch.testing.assert_close(seen.maps[layer, :, 2], frames)
    expected = logits[:-1].log_softmax(-1)[range(T - 1), TOKENS[1:]]
    torch.testing.assert_close(seen.log_probs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.by_word().sum((1, 2, 3)), torch.ones(T - 1))


@BOTH
def test_mixing_steps_are_distributions_that_keep_to_the_mask(model):
    mixing = inspection.attention_maps(model, FRAMES, TOKENS).mixing
    image = mixing.shape[1] - T
    torch.testing.assert_close(mixing.sum(-1), torch.ones(mixing.shape[:2]))
    assert (mixing[:, :image, image:] == 0).all()  # the image never sees the text
    assert (mixing[:, image:, image:].triu(1) == 0).all()  # a word never sees later ones


def test_mixing_steps_are_the_recorded_attention():
    names = ["mixer.0.attention.softmax", "layers.1.*attention.softmax"]
    with record(STUDENT, names) as seen, record(TEACHER, WATCHED[TEACHER]) as theirs:
        STUDENT(FRAMES[None], TOKENS[None])
        TEACHER(FRAMES[None], TOKENS[None])
    found = inspection.attention_maps(STUDENT, FRAMES, TOKENS).mixing
    assert len(found) == 1 + 2 * 2
    pairs = list(zip([found[0, :-T, :-T], found[3, -T:, -T:], found[4, -T:, :-T]], seen.values()))
    found = inspection.attention_maps(TEACHER, FRAMES, TOKENS).mixing
    first, last = theirs.values()
    pairs += [(found[0, :-T, :-T], first[:1]), (found[0, -T:], first[1:]), (found[1, -T:], last)]
    for mixing, calls in pairs:
        torch.testing.assert_close(mixing, calls[0][0].mean(0))


def test_rollout_by_hand():
    first = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    second = torch.tensor([[1.0, 0.0], [0.8, 0.2]])
    expected = torch.tensor([[0.6, 0.4], [0.39, 0.61]])  # half of a token goes round each step
    torch.testing.assert_close(inspection.rollout(torch.stack([first, second])), expected)
    later = inspection.rollout(torch.stack([first, second]), first=1)
    torch.testing.assert_close(later, (second + torch.eye(2)) / 2)
    with pytest.raises(ValueError, match="first must be one of the 2 steps, 0 to 1; got 2"):
        inspection.rollout(torch.stack([first, second]), first=2)


@BOTH
def test_gradient_attention_is_slope_times_attention(model):
    """Against finite differences: one weight of one head made larger, through a hook that replaces the output."""
    t, lead = 2, 1 if model is TEACHER else 0

    def log_prob(path, step, head, place):
        def push(module, inputs, output):
            output = output.clone()
            output[0, head, t, place] += step
            return output

        handle = model.get_submodule(path).register_forward_hook(push)
        with torch.no_grad():
            value = model(FRAMES[None], TOKENS[None]).logits[0, t].double().log_softmax(-1)[TOKENS[t + 1]]
        handle.remove()
        return float(value)

    with record(model, WATCHED[model]) as seen, torch.no_grad():
        model(FRAMES[None], TOKENS[None])
    by_hand = torch.zeros(2, 4)
    for path, calls in seen.items():
        weights = calls[-1][0, :, t]
        for f, cell, head in product(range(2), range(4), range(len(weights))):
            place = f * (4 + lead) + lead + cell
            slope = (log_prob(path, 1e-2, head, place) - log_prob(path, -1e-2, head, place)) / 2e-2
            by_hand[f, cell] += max(0.0, slope * float(weights[head, place])) / len(weights)
    found = inspection.gradient_attention(model, FRAMES, TOKENS)
    assert found.shape == (T - 1, 2, 2, 2)
    torch.testing.assert_close(found[t].flatten(1), by_hand, atol=2e-3, rtol=0.02)
    with torch.no_grad():
        torch.testing.assert_close(inspection.gradient_attention(model, FRAMES, TOKENS), found)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@BOTH
def test_occlusion_covers_one_place_in_all_frames(model):
    drops = inspection.occlusion(model, FRAMES, TOKENS, (4, 4), reach=0, batch=3)
    wide = inspection.occlusion(model, FRAMES, TOKENS, (4, 4))
    assert drops.shape == wide.shape == (T - 1, 4, 4)
    before = inspection.attention_maps(model, FRAMES, TOKENS).log_probs
    for found, rows, columns in ((drops, slice(24, 32), slice(8, 16)), (wide, slice(16, 32), slice(0, 24))):
        covered = FRAMES.clone()
        for frame, whole in zip(covered, FRAMES):
            frame[:, rows, columns] = whole.flatten(1).median(1).values[:, None, None]
        after = inspection.attention_maps(model, covered, TOKENS).log_probs
        torch.testing.assert_close(found[:, 3, 1], before - after, atol=1e-4, rtol=1e-4)
    for stride in (2, 3):
        sparse = inspection.occlusion(model, FRAMES, TOKENS, (4, 4), stride=stride)
        torch.testing.assert_close(sparse, wide[:, ::stride, ::stride], atol=1e-4, rtol=1e-4)
    for name, value in (("stride", 0), ("reach", -1), ("batch", 1.5)):
        with pytest.raises(ValueError, match=f"^{name} must be at least ., a whole number, not {value}$"):
            inspection.occlusion(model, FRAMES, TOKENS, (4, 4), **{name: value})


def test_explanations_have_one_shape_for_any_git_and_a_single_image():
    pixels, tokens = tiny_git.random_inputs(1)
    git = tiny_git.random_git()
    cases = (TEACHER, FRAMES, TOKENS), (STUDENT, FRAMES, TOKENS), (git, pixels[0], tokens[0])
    for case, size in zip(cases, [(T - 1, 2, 2), (T - 1, 2, 2), (5, 4, 4)]):
        maps = inspection.explain(*case)
        assert list(maps) == ["raw attention", "rollout", "gradient × attention", "occlusion"]
        assert {tuple(values.shape) for values in maps.values()} == {size}
    with pytest.raises(ValueError, match=r"give one clip .* got \[1, 3, 16, 16\] and \[1, 6\]"):
        inspection.attention_maps(git, pixels, tokens)


@BOTH
def test_clips_of_the_cpu_go_to_the_model(model):
    """Torch's meta device refuses tensors of the CPU as a GPU does."""
    there = deepcopy(model).to("meta")
    seen = inspection.attention_maps(there, FRAMES, TOKENS)
    name = "model.image_encoder.layers.1" if model is TEACHER else "memory_norm"
    found = [seen.by_word(), seen.rollout(), seen.log_probs]
    found += [inspection.gradient_attention(there, FRAMES, TOKENS)]
    found += [inspection.occlusion(there, FRAMES, TOKENS, (2, 2))]
    found += [inspection.features(there, name, FRAMES[None])[name]]
    assert {value.device.type for value in found} == {"meta"}


def test_rank_correlation_by_hand():
    x = torch.tensor([1.0, 2.0, 2.0, 9.0])
    assert inspection.rank_correlation(x, x**3) == pytest.approx(1)
    assert inspection.rank_correlation(x, -x) == pytest.approx(-1)
    ranks = torch.tensor([[1, 2.5, 2.5, 4], [4, 1, 3, 2]])
    expected = float(torch.corrcoef(ranks)[0, 1])
    assert inspection.rank_correlation(x, torch.tensor([7.0, 0.0, 3.0, 1.0])) == pytest.approx(expected)


@BOTH
def test_shuffled_keeps_the_numbers_and_forgets_their_places(model):
    copy = inspection.shuffled(model)
    pairs = list(zip(copy.parameters(), model.parameters()))
    assert all(torch.equal(a.flatten().sort()[0], b.flatten().sort()[0]) for a, b in pairs)
    given = [m(FRAMES[None], TOKENS[None]).logits for m in (model, copy, inspection.shuffled(model))]
    assert not torch.allclose(given[0], given[1], atol=0.1) and torch.equal(given[1], given[2])
    assert not copy.training


def test_a_mask_on_the_grid():
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, :2, :2] = True  # 4 of 100 pixels of the first cell
    mask[0, 19, 17:] = True  # 3 of 100 pixels of the last one
    assert inspection.mask_on_grid(mask, (2, 2)).tolist() == [[[True, False], [False, False]]]


def scene(*toys):
    return SimpleNamespace(toys=[Toy(*toy) for toy in toys])


def test_referents_are_unambiguous():
    two = scene(("bucket", "red", "small", "left"), ("umbrella", "blue", "small", "left"))
    words = ["a", "red", "pail", "and", "blue", "parasol", "cat"]
    named = [None, ("colour", 0), ("object", 0), None, ("colour", 1), ("object", 1), None]
    assert inspection.referents(words, two) == named
    alike = scene(("bucket", "red", "small", "left"), ("umbrella", "red", "small", "left"))
    assert inspection.referents(["red", "umbrella"], alike) == [None, ("object", 1)]


def clip_with_a_bucket():
    masks = torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    masks[0, 1, :16, :16] = True  # the first cell of the second frame
    bucket = scene(("bucket", "red", "small", "still"))
    return SimpleNamespace(frames=FRAMES, masks=masks, captions=["a red bucket"], scene=bucket)


def pointing_at(row, column=0):
    """What stands for attention: all of it on one cell of the second frame."""

    def maps(model, frames, tokens):
        values = torch.zeros(len(tokens) - 1, 2, 2, 2)
        values[:, 1, row, column] = 1
        return values

    return maps


def play(clips, maps):
    return inspection.pointing_game(None, clips, TEACHER.tokenizer, maps)


def test_the_pointing_game_scores_a_perfect_and_an_even_map():
    rows = play([clip_with_a_bucket()] * 2, pointing_at(0))
    expected = {"clip": 0, "word": "red", "kind": "colour", "hit": 1.0, "other": None}
    expected |= {"share": 1.0, "chance": 0.125}
    assert rows[0] == expected and [row["clip"] for row in rows] == [0, 0, 1, 1]
    for row in play([clip_with_a_bucket()], lambda *clip: torch.ones_like(pointing_at(0)(*clip))):
        assert row["hit"] == row["share"] == row["chance"]
    there = play([clip_with_a_bucket()] * 2, lambda *clip: pointing_at(0)(*clip).as_subclass(Elsewhere))
    assert there == rows


def test_the_pointing_game_tells_when_the_strongest_cell_is_on_the_other_thing():
    clip = clip_with_a_bucket()
    umbrella = torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    umbrella[0, 1, :, :16] = True  # two cells, one of them the bucket's
    clip.masks = torch.cat([clip.masks, umbrella])
    clip.scene.toys.append(Toy("umbrella", "blue", "small", "still"))
    scores = [{(row["hit"], row["other"]) for row in play([clip], pointing_at(row))} for row in (0, 1)]
    assert scores == [{(1.0, 0.0)}, {(0.0, 1.0)}]  # a cell that shows both is the named thing's


@BOTH
def test_the_pointing_game_takes_the_map_that_predicts_the_word(model):
    clip = clip_with_a_bucket()
    tokens = torch.tensor(TEACHER.tokenizer("a red bucket")["input_ids"])
    maps = inspection.attention_maps(model, clip.frames, tokens).by_word()
    rows = inspection.pointing_game(model, [clip], TEACHER.tokenizer)
    assert [row["word"] for row in rows] == ["red", "bucket"]
    for row, t in zip(rows, (1, 2)):  # tokens: start, a, red, bucket, end
        assert row["share"] == pytest.approx(float(maps[t, 1, 0, 0]), rel=1e-5)


def test_scores_are_averaged_by_kind():
    kinds = product(range(4), ("colour", "object"))
    rows = [{"clip": k, "kind": kind, "hit": float(k % 2), "chance": 0.1} for k, kind in kinds]
    board = inspection.scores_by_kind(rows)
    assert list(board) == ["object", "colour"] and board["colour"][0] == 0.5 and board["colour"][3] == 4
    assert inspection.scores_by_kind(rows, "chance")["object"] == pytest.approx((0.1, 0.1, 0.1, 4))
    for row in rows:
        row["other"] = None if row["kind"] == "colour" or row["clip"] == 0 else 0.5
    assert inspection.scores_by_kind(rows, "other") == {"object": (0.5, 0.5, 0.5, 3)}


@BOTH
def test_features_are_what_hooks_catch_clip_by_clip(model):
    clips = torch.stack([FRAMES, FRAMES.flip(-1), FRAMES.flip(0)])
    name = "model.image_encoder.layers.1" if model is TEACHER else "memory_norm"
    found = inspection.features(model, name, clips, batch=2)[name]
    assert found.shape[:3] == (3 * tiny.FRAMES, 2, 2)
    with record(model, name) as seen, torch.no_grad():
        model(clips[1:2], TOKENS[None])
    (caught,) = seen[name]
    lead = 1 if model is TEACHER else 0
    caught = caught.reshape(tiny.FRAMES, 4 + lead, -1)[:, lead:].unflatten(1, (2, 2))
    torch.testing.assert_close(found[tiny.FRAMES : 2 * tiny.FRAMES], caught, atol=1e-4, rtol=1e-4)
    pooled = inspection.features(model, name, clips, pooled=True)[name]
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
    assert inspection.cka(x, y) == pytest.approx(by_loops(x, y), abs=1e-9)
    turn = torch.linalg.qr(random(5, 5, seed=2))[0]
    assert inspection.cka(x, 3 * x @ turn + 1) == pytest.approx(1, abs=1e-6)
    wide = inspection.cka(random(64, 400), random(64, 300, seed=3))
    assert abs(wide) < 0.1  # the plain form gives 0.86
    grid = inspection.cka_map([x, y], [y, x, x + y[:, :5]])
    assert grid.shape == (2, 3) and grid[0, 1] == pytest.approx(1) == grid[1, 0]
    with pytest.raises(ValueError, match=r"same images for all layers.*got \[29, 30\]"):
        inspection.cka_map([x], [y[:29]])


def test_ridge_finds_a_linear_map():
    x = random(200, 4)
    weight = random(4, 3, seed=1)
    into = inspection.ridge(x, x @ weight + 5, strength=1e-9)
    torch.testing.assert_close(into(x[:7]), x[:7] @ weight + 5, atol=1e-4, rtol=1e-4)
    strong = inspection.ridge(x, x @ weight + 5, strength=1e9)
    torch.testing.assert_close(strong(x[:2]), (x @ weight + 5).mean(0).expand(2, 3), atol=1e-4, rtol=1e-4)


def test_joint_pca_gives_two_views_of_one_thing_the_same_colours():
    hidden = random(300, 3) * torch.tensor([5.0, 2.0, 1.0])
    views = {"teacher": hidden @ random(3, 8, seed=1), "student": hidden @ random(3, 6, seed=2)}
    fit = {name: values[:200] for name, values in views.items()}
    shown = {name: values[200:].view(5, 20, -1) for name, values in views.items()}
    colours, explained = inspection.joint_pca(fit, shown)
    assert colours["teacher"].shape == (5, 20, 3)
    torch.testing.assert_close(colours["student"], colours["teacher"], atol=0.05, rtol=0)
    assert colours["teacher"].std((0, 1)).min() > 0.1
    assert float(explained.sum()) == pytest.approx(1, abs=1e-6)
    assert explained.tolist() == sorted(explained.tolist(), reverse=True)
    with pytest.raises(ValueError, match="must name the same networks"):
        inspection.joint_pca(fit, {"teacher": shown["teacher"]})


def test_scaling_finds_the_points_whose_distances_it_was_given():
    points = random(7, 2).double() * torch.tensor([3.0, 1.0])
    points[6] = points[5]  # most alike, so 0 apart
    far = torch.cdist(points, points)
    found, share = inspection.scaling((5 - far).fill_diagonal_(99.0))
    torch.testing.assert_close(torch.cdist(found, found), far, atol=1e-5, rtol=0)
    assert share == pytest.approx(1) and found.gather(0, found.abs().argmax(0, keepdim=True)).min() > 0
    line, less = inspection.scaling(5 - far, count=1)
    assert 0.5 < less < 1 and torch.equal(line[:, 0], found[:, 0])
    unknown = 5 - far
    unknown[[0, 1], [1, 0]] = torch.nan
    assert inspection.scaling(unknown)[0].isfinite().all()


def test_procrustes_turns_mirrors_moves_and_resizes():
    target = random(9, 3)
    turn = torch.linalg.qr(random(3, 3, seed=1))[0]
    for mirror in (1.0, -1.0):
        moved = 4 * (target * torch.tensor([mirror, 1, 1])) @ turn + 7
        torch.testing.assert_close(inspection.procrustes(moved, target), target, atol=1e-5, rtol=0)
    other = inspection.procrustes(random(9, 3, seed=2), target)
    torch.testing.assert_close((other - other.mean(0)).norm(), (target - target.mean(0)).norm())
    torch.testing.assert_close(other.mean(0), target.mean(0), atol=1e-6, rtol=0)


def test_statistics_are_computed_on_the_cpu():
    x, y = random(60, 4), random(60, 3, seed=1)
    far = [value.as_subclass(Elsewhere) for value in (x, y)]
    firsts = [[value[:, 0] for value in pair] for pair in (far, (x, y))]
    assert inspection.rank_correlation(*firsts[0]) == inspection.rank_correlation(*firsts[1])
    assert torch.equal(inspection.cka_map(far, far), inspection.cka_map([x, y], [x, y]))
    assert torch.equal(inspection.ridge(*far)(far[0]), inspection.ridge(x, y)(x))
    there, here = ({"a": a, "b": b} for a, b in (far, (x, y)))
    for name, colours in inspection.joint_pca(here, here)[0].items():
        assert torch.equal(inspection.joint_pca(there, there)[0][name], colours)


def test_linear_probe_reads_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    labels = [("left", "right", "still")[k % 3] for k in range(300)]
    noise = torch.randn(300, 8, generator=generator)
    signal = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[[k % 3 for k in range(300)]]
    known, asked = torch.cat([noise, signal], 1).split(150)
    told = inspection.linear_probe(known, labels[:150], asked)
    assert told == labels[150:]
    told = inspection.linear_probe(noise[:150], labels[:150], noise[150:])
    assert 0.15 < sum(a == b for a, b in zip(told, labels[150:])) / 150 < 0.5
    same = inspection.linear_probe(torch.ones(4, 3), ["still", "left", "still", "left"], torch.ones(2, 3))
    assert len(same) == 2  # a layer that never changes tells nothing, and that is no error
    for known, given in ((noise, labels[:7]), (noise[:0], [])):
        with pytest.raises(ValueError, match=f"got {len(known)} features, {len(given)} labels"):
            inspection.linear_probe(known, given, noise)


def test_a_network_without_modules_is_named():
    with pytest.raises(ValueError, match="has no modules to look into"):
        inspection.occlusion(object(), FRAMES, TOKENS, (2, 2))
    with pytest.raises(ValueError, match="no mixing to roll out"):
        inspection.rollout(torch.empty(0, 0, 0))


@pytest.mark.parametrize("frames", [1, 2])
def test_text_does_not_pass_for_image_features(frames):
    """The last layer of GIT runs on text alone."""
    clips = torch.zeros(2, frames, 3, tiny.SIDE, tiny.SIDE, dtype=torch.uint8)
    assert inspection.features(tiny.git(), "layers.0", clips)["layers.0"].ndim == 4
    with pytest.raises(ValueError, match="no square grid|not a map"):
        inspection.features(tiny.git(), "layers.1", clips)


def test_a_caption_is_told_by_a_network_of_few_positions():
    """At most as long as the network can say it, with the attention of each word."""
    git, words = tiny_git.lively_git(1), tiny_git.tokenizer()
    found = inspection.told(git, words, tiny_git.random_inputs(1)[0])
    assert len(found["heads"][0][0]) == len(found["words"]) == len(found["probabilities"]) < git.max_positions
