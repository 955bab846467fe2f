"""Interventions against the same thing done by hand."""

import pytest
import tiny
import torch

from gitdistill.hooks import edit, record
from gitdistill.inspection import intervention
from gitdistill.inspection.attention import log_probs
from gitdistill.inspection.intervention import Cut, cell_effects, head_effects, logit_lens, with_cuts

NETWORKS = {"teacher": tiny.git, "student": tiny.student}
TOKENS = torch.tensor([2, 7, 9, 30, 3])
SPREAD = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=NETWORKS)
def model(request):
    return NETWORKS[request.param]().eval()


@pytest.fixture
def clips():
    return tiny.clips(2)


def plain(model, clip):
    with torch.no_grad():
        return log_probs(model, clip[None], TOKENS[None])[0]


def cells(*chosen):
    mask = torch.zeros(tiny.FRAMES, 2, 2, dtype=torch.bool)
    for place in chosen:
        mask[place] = True
    return mask


def test_without_a_cut_nothing_changes(model, clips):
    found = with_cuts(model, clips[0], TOKENS, [Cut(heads=()), Cut(cells=cells())])
    torch.testing.assert_close(found, plain(model, clips[0]).expand(2, -1), **SPREAD)


def test_cuts_do_not_touch_each_other(model, clips):
    cuts = [Cut(cells=cells((0, 0, 0))), Cut(heads=()), Cut(layers=(0,), heads=(0,)), Cut(words=TOKENS == 7)]
    together = with_cuts(model, clips[0], TOKENS, cuts)
    for cut, row in zip(cuts, together):
        torch.testing.assert_close(with_cuts(model, clips[0], TOKENS, [cut])[0], row, **SPREAD)


def test_attention_to_cut_cells_is_zero_and_the_rest_sums_to_one(model, clips, monkeypatch):
    cut, seen = cells((0, 1, 0), (1, 0, 0)), []
    path = f"layers.1.{'attention' if hasattr(model, 'image_encoder') else 'cross_attention'}.softmax"

    def watched(model, changes):
        change = changes[path]
        return edit(model, {**changes, path: lambda weights: seen.append(change(weights)) or seen[-1]})

    monkeypatch.setattr(intervention, "edit", watched)
    with_cuts(model, clips[0], TOKENS, [Cut(cells=cut)])
    weights = seen[-1][0]  # (H, T, S)
    image = weights.shape[-1] - (len(TOKENS) if hasattr(model, "image_encoder") else 0)
    per_frame = weights[..., :image].unflatten(-1, (tiny.FRAMES, -1))[..., -4:]
    assert not per_frame[..., cut.flatten(1)].any() and (per_frame[..., ~cut.flatten(1)] > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


def test_without_any_image_the_clip_does_not_matter(model, clips):
    everything = torch.ones(tiny.FRAMES, 2, 2, dtype=torch.bool)
    one, other = (with_cuts(model, clip, TOKENS, [Cut(cells=everything)]) for clip in clips)
    if hasattr(model, "image_encoder"):  # class tokens are still seen
        assert not torch.allclose(one, plain(model, clips[0])[None], **SPREAD)
    else:
        torch.testing.assert_close(one, other, **SPREAD)


def test_a_silent_head_is_one_without_values(model, clips):
    """The same by setting its slice of the mixed values to zero before the output layer."""
    silent = with_cuts(model, clips[0], TOKENS, [Cut(layers=(1,), heads=(0,))])[0]
    name = "attention" if hasattr(model, "image_encoder") else "cross_attention"
    attention = model.layers[1].get_submodule(name)
    width = attention.output.in_features // attention.heads

    def mute(module, inputs):
        (x,) = inputs
        return (torch.cat([torch.zeros_like(x[..., :width]), x[..., width:]], dim=-1),)

    handle = attention.output.register_forward_pre_hook(mute)
    expected = plain(model, clips[0])
    handle.remove()
    torch.testing.assert_close(silent, expected, **SPREAD)
    effects = head_effects(model, clips[0], TOKENS)
    assert effects.shape == (2, attention.heads, len(TOKENS) - 1)
    torch.testing.assert_close(effects[1, 0], plain(model, clips[0]) - silent, **SPREAD)


def test_the_effect_of_a_place_is_that_of_its_cells(model, clips):
    found = cell_effects(model, clips[0], TOKENS, (2, 2), reach=0)
    one = with_cuts(model, clips[0], TOKENS, [Cut(cells=cells((slice(None), 1, 0)))])[0]
    assert found.shape == (len(TOKENS) - 1, 2, 2)
    torch.testing.assert_close(found[:, 1, 0], plain(model, clips[0]) - one, **SPREAD)


def test_words_that_are_not_seen_do_not_matter(model, clips):
    hidden = torch.tensor([False, True, False, False, False])
    other = TOKENS.clone()
    other[1] = 40
    one, two = (with_cuts(model, clips[0], tokens, [Cut(words=hidden)])[0] for tokens in (TOKENS, other))
    torch.testing.assert_close(one[2:], two[2:], **SPREAD)  # the word itself still stands at its own place
    assert not torch.allclose(plain(model, clips[0])[2:], one[2:], **SPREAD)


def test_patching_all_of_the_image_gives_the_other_clip(model, clips):
    path = "projection" if hasattr(model, "image_encoder") else "memory_norm"
    with record(model, path) as seen:
        model(clips[:1], TOKENS[None])
    none = torch.zeros(seen[path][0].shape[:-1], dtype=torch.bool)
    some = none.clone()
    some[:, : none.shape[1] // 2] = True

    def with_patch(*places):
        with intervention.patched(model, clips[1], path, *places):
            return plain(model, clips[0])

    torch.testing.assert_close(with_patch(), plain(model, clips[1]), **SPREAD)
    torch.testing.assert_close(with_patch(none), plain(model, clips[0]), **SPREAD)
    assert not any(torch.allclose(with_patch(some), plain(model, clip), **SPREAD) for clip in clips)
    torch.testing.assert_close(plain(model, clips[0]), with_patch(none), **SPREAD)  # nothing is left behind


def test_the_lens_ends_with_the_networks_own_logits(model, clips):
    logits = logit_lens(model, clips[0], TOKENS)
    assert logits.shape == (3, len(TOKENS) - 1, model.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(logits[-1], model(clips[:1], TOKENS[None]).logits[0, :-1], **SPREAD)
    assert not torch.allclose(logits[0], logits[1])


def test_cells_that_do_not_fit(model, clips):
    with pytest.raises(ValueError, match="do not fit 2 frames"):
        with_cuts(model, clips[0], TOKENS, [Cut(cells=torch.zeros(2, 3, 3, dtype=torch.bool))])


def test_gradients_and_modes_are_left_alone(model, clips):
    model.train()
    with_cuts(model, clips[0], TOKENS, [Cut()])
    assert model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("cut", [Cut(layers=(2,)), Cut(layers=(-1,)), Cut(heads=(2,))])
def test_layers_and_heads_that_do_not_exist_are_refused(cut):
    frames = torch.zeros(tiny.FRAMES, 3, tiny.SIDE, tiny.SIDE, dtype=torch.uint8)
    with pytest.raises(ValueError, match="there is no (layer|head)"):
        with_cuts(tiny.git().eval(), frames, torch.tensor([2, 5, 3]), [cut])
