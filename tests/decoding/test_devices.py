"""On an accelerator the search reads from the device every few steps only, and finds the same."""

import pytest
import torch
from fakes import TableModel, clips, searches
from tiny_git import lively_git, random_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from gitdistill.decoding import loop

READS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero"}
READS |= {"masked_select", "multinomial", "unique"}

every_search = pytest.mark.parametrize(
    "search",
    searches(
        every={"max_length": 12, "min_length": 3, "prefix": [[2], [2, 7, 9], [2, 6]]},
        beams={"beams": 3, "num_return": 2, "length_penalty": 0.2},
        draws={"top_k": 20, "top_p": 0.95, "num_return": 2, "seed": 3},
    ),
)


class Reads(TorchDispatchMode):
    """The number of steps taken when a number, or a size that depends on numbers, was read."""

    def __init__(self, model):
        super().__init__()
        self.steps, self.seen, step = 0, set(), model.decode_step

        def counted(*arguments):
            self.steps += 1
            return step(*arguments)

        model.decode_step = counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in READS or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            self.seen.add((self.steps, name))
        return func(*args, **(kwargs or {}))


@every_search
@pytest.mark.parametrize("every", [1, 4])
def test_no_step_reads_from_the_device_between_two_looks(search, every, monkeypatch):
    monkeypatch.setitem(loop.CHECK_EVERY, "cpu", every)
    model, (pixels, _) = lively_git(1), random_inputs(clips=3)
    model.head.bias.data[3] = -99  # no caption ends
    with Reads(model) as reads:
        steps = search(model, pixels).steps
    assert steps == reads.steps == 11
    looks = {step for step, _ in reads.seen}
    assert looks == {0, *range(every, 11, every), 11}, reads.seen


@every_search
def test_later_looks_change_no_result(search, monkeypatch):
    more = set()
    for seed in range(6):
        model, (pixels, _) = lively_git(seed), random_inputs(clips=3, seed=seed)
        model.head.bias.data[3] += 3  # early ends
        found = []
        for every in (1, 3, 8):
            monkeypatch.setitem(loop.CHECK_EVERY, "cpu", every)
            found.append(search(model, pixels, trace=True))
            assert torch.equal(found[-1].tokens, found[0].tokens)
            assert torch.equal(found[-1].scores, found[0].scores)
            for name, values in found[0].trace.items():
                torch.testing.assert_close(found[-1].trace[name], values, rtol=0, atol=0, equal_nan=True)
            assert found[-1].steps == min(-(-found[0].steps // every) * every, 11)
            more.add(found[-1].steps - found[0].steps)
    assert len(more) > 2


@every_search
@pytest.mark.parametrize("every", [1, 4])
def test_what_is_wrong_is_named_with_its_step_though_seen_later(search, every, monkeypatch):
    monkeypatch.setitem(loop.CHECK_EVERY, "cpu", every)

    class Broken(TableModel):
        bos_token_id, eos_token_id = 2, 3

        def logits(self, clip, tokens):
            logits, third = super().logits(clip, tokens), len(tokens) // 3
            if tokens.shape[1] == 6:
                logits[third : 2 * third] = torch.nan
            return logits

    def forbid(tokens, scores):
        return scores - torch.inf if tokens.shape[1] == 5 else scores

    with pytest.raises(ValueError, match="NaN among the logits of clip 1 at step 5"):
        search(Broken(eos_bias=-99.0), clips(3))
    with pytest.raises(ValueError, match="processors leave clip 0 no token at step 4"):
        search(Broken(eos_bias=-99.0), clips(3), processors=[forbid])
    with pytest.raises(ValueError, match="the batch is empty"):
        search(TableModel(), clips(0))


@every_search
def test_logits_of_a_clip_that_is_done_do_not_matter(search):
    class Fading(TableModel):
        """NaN for the first clip from a given length on."""

        bos_token_id, eos_token_id, last = 2, 3, 99

        def logits(self, clip, tokens):
            logits = super().logits(clip, tokens)
            first = torch.arange(len(clip))[:, None] < len(clip) // 3
            return logits.masked_fill(first & (tokens.shape[1] > self.last), torch.nan)

    waited = 0
    for seed in range(8):
        model, frames = Fading(seed=seed, eos_bias=3.0), clips(3, seed)
        expected = search(model, frames, trace=True)
        model.last = int(expected.trace["step"][expected.trace["clip"] == 0].max()) + 1  # after its prefix
        found = search(model, frames)
        assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.scores, expected.scores)
        waited += model.last < expected.steps
    assert waited > 1
