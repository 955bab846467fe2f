"""The data module: batches as promised, new captions each epoch, the same validation and test clips for every seed."""

import pytest
import pytorch_lightning as pl
import torch
from transformers import AutoTokenizer, BertTokenizerFast

from gitdistill.world.facts import count_facts
from gitdistill.world.grammar import KINDS, words
from gitdistill.world.module import STREAM_EPOCH, GlyphData, glyph_tokenizer
from gitdistill.world.scenes import HELD_OUT, STEPS, content_bucket


def texts(batch, tokenizer):
    return tokenizer.batch_decode(batch["tokens"], skip_special_tokens=True)


def small(**options):
    sizes = {"train_clips": 40, "val_clips": 6, "test_clips": 5, "unseen_clips": 4, "batch_size": 16}
    return GlyphData(**sizes | options)


def test_tokenizer_is_gits_class_with_the_worlds_words(tmp_path):
    tokenizer = glyph_tokenizer()
    assert isinstance(tokenizer, BertTokenizerFast)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_ids_to_tokens(range(5, len(tokenizer))) == words()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "an orange wheel to the left of a pair of red swords"
    ids = loaded(text)["input_ids"]
    assert type(loaded) is type(tokenizer) and ids == tokenizer(text)["input_ids"]
    assert ids[0] == 2 and ids[-1] == 3 and tokenizer.unk_token_id not in ids
    assert loaded.decode(ids, skip_special_tokens=True) == text
    assert loaded.model_max_length == 32


@pytest.mark.parametrize("captions", [1, 3])
def test_training_batches(captions):
    data = small(captions_per_clip=captions, masks=True)
    batches = list(data.train_dataloader())
    assert [len(batch["frames"]) for batch in batches] == [16, 16, 8]
    batch = batches[0]
    assert batch["frames"].shape == (16, 4, 3, 96, 96) and batch["frames"].dtype == torch.uint8
    assert batch["masks"].shape == (16, 2, 4, 96, 96) and batch["masks"].dtype == torch.bool
    assert batch["tokens"].dtype == torch.long and len(batch["tokens"]) == 16 * captions
    assert (batch["tokens"][:, 0] == data.tokenizer.cls_token_id).all()
    assert [len(row) for row in batch["references"]] == [5] * 16
    for row, text in enumerate(texts(batch, data.tokenizer)):
        counts = count_facts(text, batch["scenes"][row // captions])
        assert all(counts[kind][0] == counts[kind][1] for kind in KINDS), text
    for masks, scene in zip(batch["masks"], batch["scenes"]):
        assert masks.flatten(1).any(1).tolist() == [True, len(scene.things) == 2]
    assert "masks" not in next(iter(small().train_dataloader()))


def test_each_epoch_shuffles_and_says_something_else():
    data = small()
    loader = data.train_dataloader()
    epochs = [
        [
            (scene, text)
            for batch in loader
            for scene, text in zip(batch["scenes"], texts(batch, data.tokenizer))
        ]
        for _ in range(2)
    ]
    scenes = [[scene for scene, _ in epoch] for epoch in epochs]
    assert scenes[0] != scenes[1] and set(scenes[0]) == set(scenes[1]) and len(set(scenes[0])) == 40
    assert set(epochs[0]) != set(epochs[1])
    again = [scene for batch in small().train_dataloader() for scene in batch["scenes"]]
    assert again == scenes[0]


def test_a_given_epoch_can_be_repeated():
    first, second = small().train_dataloader(), small().train_dataloader()
    first.sampler.set_epoch(7)
    second.sampler.set_epoch(7)
    assert torch.equal(next(iter(first))["tokens"], next(iter(second))["tokens"])


def test_new_captions_have_no_number():
    batch = next(iter(small(captions_per_clip=2).train_dataloader()))
    assert batch["caption"].tolist() == [-1] * 32
    assert len(set(batch["clip"].tolist())) == 16 and max(batch["clip"]) < 40


def test_captions_from_the_clips_own():
    data = small(captions_per_clip=3, fresh_captions=False, singles=10)
    loader = data.train_dataloader()
    seen = set()
    for epoch in range(6):
        for batch in loader:
            numbers = batch["caption"].view(-1, 3).tolist()
            own = [data.pool.clip(clip) for clip in batch["clip"].tolist()]
            said = iter(texts(batch, data.tokenizer))
            for clip, row, frames in zip(own, numbers, batch["frames"]):
                assert len(set(row)) == 3 and torch.equal(clip.frames, frames)
                assert [next(said) for _ in row] == [clip.captions[number] for number in row]
            seen |= {(clip, number) for clip, row in zip(batch["clip"].tolist(), numbers) for number in row}
            if epoch == 0:
                assert all(len(o.scene.things) == 1 for clip, o in zip(batch["clip"], own) if clip >= 40)
    assert {clip for clip, _ in seen if clip >= 40} == set(range(40, 50))
    assert len([1 for clip, _ in seen if clip < 40]) > 0.9 * 40 * 5
    first, again = (small(captions_per_clip=3, fresh_captions=False).train_dataloader() for _ in range(2))
    again.sampler.set_epoch(0)
    for a, b in zip(first, again):
        assert torch.equal(a["tokens"], b["tokens"]) and torch.equal(a["caption"], b["caption"])


def test_the_pool_in_order():
    data = small(singles=3)
    assert data.pool_size == 43
    batches = list(data.pool_dataloader())
    assert torch.cat([batch["clip"] for batch in batches]).tolist() == list(range(43))
    assert batches[0]["caption"].tolist() == [0, 1, 2, 3, 4] * 16
    assert texts(batches[1], data.tokenizer) == [text for row in batches[1]["references"] for text in row]
    assert all(len(scene.things) == 1 for scene in batches[2]["scenes"][-3:])
    (later,) = data.pool_dataloader(start=32)
    assert torch.equal(later["frames"], batches[2]["frames"]) and torch.equal(
        later["clip"], batches[2]["clip"]
    )


def test_clips_without_captions():
    for fresh in (True, False):
        data = small(captions_per_clip=2, labelled=5, fresh_captions=fresh)
        seen = set()
        for batch in data.train_dataloader():
            rows = batch["tokens"].unflatten(0, (-1, 2))
            for clip, row, references in zip(batch["clip"].tolist(), rows, batch["references"]):
                assert (row[:, 1:] != 0).any().item() == (len(references) == 5) == (clip < 5)
                assert (row[:, 0] == data.tokenizer.cls_token_id).all()
                seen.add(clip)
        assert len(seen) == 40
    assert len(next(iter(small(labelled=0).train_dataloader()))["tokens"][0]) == 1


def test_a_fingerprint_names_what_the_pool_depends_on():
    one = small().fingerprint()
    for options in ({"seed": 1}, {"train_clips": 41}, {"singles": 2}, {"num_frames": 3}, {"image_size": 64}):
        (name,) = options
        other = small(**options).fingerprint()
        assert {name, "content"} >= {key for key in one if one[key] != other[key]} >= {name}
    assert small(batch_size=3, labelled=3, captions_per_clip=2, workers=1).fingerprint() == one


def test_stream_never_repeats():
    data = small(train_clips=None)
    loader = data.train_dataloader()
    assert len(loader.sampler) == STREAM_EPOCH
    indices = [{index for _, _, index in loader.sampler} for _ in range(2)]
    assert len(indices[0] | indices[1]) == 2 * STREAM_EPOCH
    assert len(next(iter(loader))["frames"]) == 16


def test_the_first_clips_show_one_thing():
    loader = small(singles=60).train_dataloader()
    counts = [[len(scene.things) for batch in loader for scene in batch["scenes"]] for _ in range(2)]
    assert counts[0] == [1] * 40 and counts[1][:20] == [1] * 20 and 2 in counts[1][20:]


def test_seed_moves_training_only():
    one, two = small(seed=0), small(seed=1)
    assert one.train_set.scene(0) != two.train_set.scene(0)
    for a, b in zip(
        [one.val_dataloader(), *one.test_dataloader()], [two.val_dataloader(), *two.test_dataloader()]
    ):
        for first, second in zip(a, b):
            assert torch.equal(first["frames"], second["frames"])
            assert first["references"] == second["references"]


def test_validation_and_test_batches():
    data = small(captions_per_clip=3)
    val, (test, unseen) = data.val_dataloader(), data.test_dataloader()
    for loader, size in ((val, 6), (test, 5), (unseen, 4)):
        (batch,) = loader
        assert len(batch["tokens"]) == len(batch["scenes"]) == size
        assert texts(batch, data.tokenizer) == [row[0] for row in batch["references"]]
        pairs = {(scene.things[0].colour, scene.things[0].symbol) for scene in batch["scenes"]}
        assert pairs <= HELD_OUT if loader is unseen else not pairs & HELD_OUT
    assert all(80 <= content_bucket(scene.things) < 90 for scene in next(iter(val))["scenes"])


def test_workers_give_the_same_batches():
    alone, together = list(small().train_dataloader()), list(small(workers=2).train_dataloader())
    for a, b in zip(alone, together):
        assert torch.equal(a["frames"], b["frames"]) and torch.equal(a["tokens"], b["tokens"])


def test_image_mode():
    data = small(num_frames=1, image_size=64)
    batch = next(iter(data.train_dataloader()))
    assert batch["frames"].shape == (16, 1, 3, 64, 64)
    assert not any(
        set(text.split()) & {"moves", *STEPS, "spins", "grows"} - {"left", "right"}
        for text in texts(batch, data.tokenizer)
    )


def test_lightning_tells_the_epoch(tmp_path):
    class Listener(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen = {}

        def training_step(self, batch, index):
            self.seen.setdefault(self.current_epoch, []).append(batch["tokens"])
            return self.weight * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    listener = Listener()
    pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(listener, small().train_dataloader())
    loader = small().train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        assert all(torch.equal(a, b["tokens"]) for a, b in zip(listener.seen[epoch], loader))


def test_caption_too_long():
    with pytest.raises(
        ValueError, match="caption of 6 tokens, at most 5 are allowed: 'a red cat grows'"
    ) as error:
        encode(["a cat", "a red cat grows"], glyph_tokenizer(), 5)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="at most 4 are allowed"):
        list(small(max_tokens=4).train_dataloader())


def test_unknown_words():
    with pytest.raises(ValueError, match="not in the tokenizer's vocabulary: zebra, purple"):
        encode(["a zebra and a purple cat"], glyph_tokenizer(), 32)
    other = BertTokenizerFast(
        vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    )
    with pytest.raises(ValueError, match="lacks 116 of the world's 117 words: above"):
        GlyphData(tokenizer=other)


@pytest.mark.parametrize(
    "options",
    [
        {"train_clips": 0},
        {"captions_per_clip": 0},
        {"batch_size": 0},
        {"captions_per_clip": 6, "fresh_captions": False},
        {"labelled": 20_001},
        {"labelled": 1, "train_clips": None},
    ],
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GlyphData(**options)
