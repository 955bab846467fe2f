"""ToyboxData: batches as promised, new captions each epoch, the same validation and test clips for every seed."""

import pytest
import torch
from transformers import AutoTokenizer, BertTokenizerFast

from gitdistill.world import ToyboxData, toybox_tokenizer
from gitdistill.world.facts import count_facts
from gitdistill.world.layout import STEPS
from gitdistill.world.lexicon import KINDS, words
from gitdistill.world.module import STREAM_EPOCH
from gitdistill.world.scenes import HELD_OUT, content_bucket


def texts(batch):
    return toybox_tokenizer().batch_decode(batch["tokens"], skip_special_tokens=True)


def firsts(batch):
    return [scene.toys[0] for scene in batch["scenes"]]


def small(**options):
    sizes = {"train_clips": 40, "val_clips": 6, "test_clips": 5, "unseen_clips": 4, "lookalike_clips": 3}
    sizes["batch_size"] = 16
    return ToyboxData(**sizes | options)


def test_tokenizer_is_gits_class_with_the_worlds_words(tmp_path):
    tokenizer = toybox_tokenizer()
    assert isinstance(tokenizer, BertTokenizerFast)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_ids_to_tokens(range(5, len(tokenizer))) == words()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "an orange gift to the left of two police cars"
    ids = loaded(text)["input_ids"]
    assert type(loaded) is type(tokenizer) and ids == tokenizer(text)["input_ids"]
    assert ids[0] == 2 and ids[-1] == 3 and tokenizer.unk_token_id not in ids
    assert loaded.decode(ids, skip_special_tokens=True) == text
    assert loaded.model_max_length == 32


@pytest.mark.parametrize("captions", [1, 3])
def test_training_batches(captions):
    batches = list(small(captions_per_clip=captions, masks=True).train_dataloader())
    assert [len(batch["frames"]) for batch in batches] == [16, 16, 8]
    batch = batches[0]
    assert batch["frames"].shape == (16, 4, 3, 128, 128) and batch["frames"].dtype == torch.uint8
    assert batch["masks"].shape[2:] == (4, 128, 128) and batch["masks"].dtype == torch.bool
    assert batch["tokens"].dtype == torch.long and len(batch["tokens"]) == 16 * captions
    assert (batch["tokens"][:, 0] == toybox_tokenizer().cls_token_id).all()
    assert [len(row) for row in batch["references"]] == [5] * 16
    assert batch["caption"].tolist() == [-1] * 16 * captions  # new captions have no number
    for row, text in enumerate(texts(batch)):
        counts = count_facts(text, batch["scenes"][row // captions])
        assert all(counts[kind][0] == counts[kind][1] for kind in KINDS), text
    for masks, scene in zip(batch["masks"], batch["scenes"]):
        assert masks.flatten(1).any(1).tolist() == [k < len(scene.toys) for k in range(len(masks))]
    batch = next(iter(small(num_frames=1, image_size=64).train_dataloader()))
    assert "masks" not in batch and batch["frames"].shape == (16, 1, 3, 64, 64)
    moving = {"moves", *STEPS, "spins", "grows", "jumps"} - {"left", "right"}
    assert not any(set(text.split()) & moving for text in texts(batch))


def test_each_epoch_has_another_order_and_other_captions():
    def captioned(loader):
        return [pair for batch in loader for pair in zip(batch["scenes"], texts(batch))]

    loader, again = small().train_dataloader(), small(workers=2).train_dataloader()
    epochs = [captioned(loader) for _ in range(2)]
    scenes = [[scene for scene, _ in epoch] for epoch in epochs]
    assert scenes[0] != scenes[1] and set(scenes[0]) == set(scenes[1]) and len(set(scenes[0])) == 40
    assert set(epochs[0]) != set(epochs[1])
    for epoch in (0, 1, 0):
        again.sampler.set_epoch(epoch)
        assert captioned(again) == epochs[epoch]


def test_captions_from_the_clips_own():
    data = small(captions_per_clip=3, fresh_captions=False, singles=10)
    loader = data.train_dataloader()
    seen = set()
    for epoch in range(6):
        for batch in loader:
            numbers = batch["caption"].view(-1, 3).tolist()
            own = [data.pool.clip(clip) for clip in batch["clip"].tolist()]
            found = iter(texts(batch))
            for clip, row, frames in zip(own, numbers, batch["frames"]):
                assert len(set(row)) == 3 and torch.equal(clip.frames, frames)
                assert [next(found) for _ in row] == [clip.captions[number] for number in row]
            seen |= {(clip, number) for clip, row in zip(batch["clip"].tolist(), numbers) for number in row}
            if epoch == 0:
                assert all(len(o.scene.toys) == 1 for clip, o in zip(batch["clip"], own) if clip >= 40)
    assert {clip for clip, _ in seen if clip >= 40} == set(range(40, 50))
    assert len([1 for clip, _ in seen if clip < 40]) > 0.9 * 40 * 5


def test_the_pool_in_order():
    data = small(singles=3)
    assert data.pool_size == 43
    batches = list(data.pool_dataloader())
    assert torch.cat([batch["clip"] for batch in batches]).tolist() == list(range(43))
    assert batches[0]["caption"].tolist() == [0, 1, 2, 3, 4] * 16
    assert texts(batches[1]) == [text for row in batches[1]["references"] for text in row]
    assert all(len(scene.toys) == 1 for scene in batches[2]["scenes"][-3:])
    (later,) = data.pool_dataloader(start=32)
    assert all(torch.equal(later[name], batches[2][name]) for name in ("frames", "clip"))


@pytest.mark.parametrize("fresh, singles", [(True, 0), (False, 0), (True, 20), (False, 20)])
def test_clips_without_captions(fresh, singles):
    """The first clips have captions, and so have the easy ones that training starts with, beside the pool."""
    seen = set()
    loader = small(captions_per_clip=2, labelled=5, fresh_captions=fresh, singles=singles).train_dataloader()
    for batch in loader:
        rows = batch["tokens"].unflatten(0, (-1, 2))
        for clip, row, references in zip(batch["clip"].tolist(), rows, batch["references"]):
            captioned = clip < 5 or clip >= 40
            assert (row[:, 1:] != 0).any(1).tolist() == [captioned] * 2 and len(references) == 5 * captioned
            assert (row[:, 0] == toybox_tokenizer().cls_token_id).all()
            seen.add(clip)
    assert len(seen) == 40 and len([clip for clip in seen if clip >= 40]) == singles
    assert len(next(iter(small(labelled=0).train_dataloader()))["tokens"][0]) == 1


def test_a_fingerprint_names_what_the_pool_depends_on():
    one = small().fingerprint()
    for options in ({"seed": 1}, {"train_clips": 41}, {"singles": 2}, {"num_frames": 3}, {"image_size": 64}):
        (name,) = options
        other = small(**options).fingerprint()
        name = name.removeprefix("num_")
        assert {name, "content"} >= {key for key in one if one[key] != other[key]} >= {name}
    assert small(batch_size=3, labelled=3, captions_per_clip=2, workers=1).fingerprint() == one


def test_a_stream_never_repeats():
    loader = small(train_clips=None).train_dataloader()
    assert len(loader.sampler) == STREAM_EPOCH and len(next(iter(loader))["frames"]) == 16
    clips = set()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        clips |= {clip for clip, _, _ in loader.sampler}
    assert len(clips) == 2 * STREAM_EPOCH


def test_the_first_clips_show_one_thing():
    loader = small(singles=60).train_dataloader()
    counts = [[len(scene.toys) for batch in loader for scene in batch["scenes"]] for _ in range(2)]
    assert counts[0] == [1] * 40 and counts[1][:20] == [1] * 20 and 2 in counts[1][20:]


def test_validation_and_test_batches():
    """The same for every seed, which moves the training clips alone."""
    one, two = (small(captions_per_clip=3, seed=seed) for seed in (0, 1))
    assert one.train_set.scene(0) != two.train_set.scene(0)
    sizes, unseen = (6, 5, 4, 3), one.test_dataloader()[1]
    loaders = [[data.val_dataloader(), *data.test_dataloader()] for data in (one, two)]
    for size, loader, same in zip(sizes, *loaders):
        (batch,), (other,) = loader, same
        assert torch.equal(batch["frames"], other["frames"]) and batch["references"] == other["references"]
        assert len(batch["tokens"]) == len(batch["scenes"]) == size
        assert texts(batch) == [row[0] for row in batch["references"]]
        held_out = [{(toy.name, toy.colour), (toy.name, toy.motion)} & HELD_OUT for toy in firsts(batch)]
        assert all(held_out) if len(loader.dataset) == len(unseen.dataset) else not any(held_out)
    (batch,) = one.val_dataloader()
    assert all(80 <= content_bucket(scene.toys) < 86 for scene in batch["scenes"])


def test_captions_that_the_tokenizer_cannot_hold():
    with pytest.raises(ValueError, match="at most 4 are allowed"):
        list(small(max_tokens=4).train_dataloader())
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    other = BertTokenizerFast(vocab={word: number for number, word in enumerate(entries)})
    with pytest.raises(ValueError, match="lacks 353 of the world's 354 words: above"):
        ToyboxData(tokenizer=other)


@pytest.mark.parametrize("options", [
    {"train_clips": 0}, {"captions_per_clip": 0}, {"batch_size": 0},
    {"captions_per_clip": 6, "fresh_captions": False}, {"labelled": 20_001}, {"labelled": 1, "train_clips": None},
])  # fmt: skip
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ToyboxData(**options)
