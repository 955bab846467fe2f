"""What the embedded networks are taught before they speak."""

import pytest
import pytorch_lightning as pl
import tiny
import torch

from gitdistill.world.grammar import COLOURS, MOTIONS, RELATIONS, SYMBOLS
from gitdistill.world.module import GlyphData
from gitdistill.world.pretrain import (
    CellHeads,
    CellTrainer,
    GlyphFrames,
    TeacherTrainer,
    cell_truth,
    mask_boxes,
)
from gitdistill.world.scenes import Scene, Thing

CAT = Thing(list(SYMBOLS)[3], list(COLOURS)[2], "small", list(MOTIONS)[5])
DOG = Thing(list(SYMBOLS)[7], list(COLOURS)[4], "large", list(MOTIONS)[1])


def scene(*things, relation=None):
    return Scene(things, paths=(), turns=(), relation=relation, order=(0, 1), moving=True, background=())


def test_each_cell_belongs_to_what_covers_most_of_it():
    masks = torch.zeros(1, 2, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, 0, 0:4, 0:4] = True  # all of the upper left cell of a 2 x 2 grid
    masks[0, 1, 0, 2:8, 4:8] = True  # half of the upper right cell, all of the lower right one
    masks[0, 0, 0, 7, 0] = True  # a speck in the lower left cell: 1 pixel of 16
    truth = cell_truth(masks, [scene(CAT, DOG)], (2, 2), least=0.1)
    assert truth["symbol"].tolist() == [[[[4, 8], [0, 8]]]]
    assert truth["colour"].tolist() == [[[[3, 5], [0, 5]]]]
    assert truth["motion"].tolist() == [[[[6, 2], [0, 2]]]]
    # The second thing spans x 4..8 and y 2..8, in every cell it owns.
    for cell in (truth["box"][0, 0, 0, 1], truth["box"][0, 0, 1, 1]):
        torch.testing.assert_close(cell, torch.tensor([6, 5, 4, 6]) / 8)


def test_a_relation_is_told_from_each_thing_of_its_own():
    masks = torch.zeros(1, 2, 1, 4, 8, dtype=torch.bool)
    masks[0, 0, 0, :, :4], masks[0, 1, 0, :, 4:] = True, True
    told = cell_truth(masks, [scene(CAT, DOG, relation="left")], (1, 2))["relation"].flatten().tolist()
    assert told == [1 + list(RELATIONS).index("left"), 1 + list(RELATIONS).index("right")]
    assert not cell_truth(masks, [scene(CAT, DOG)], (1, 2))["relation"].any()


def test_boxes_of_masks():
    masks = torch.zeros(2, 6, 10, dtype=torch.bool)
    masks[0, 1:4, 2] = True
    torch.testing.assert_close(mask_boxes(masks), torch.tensor([[0.25, 2.5 / 6, 0.1, 0.5], [0, 0, 0, 0]]))


def test_right_answers_cost_nothing_and_empty_cells_count_a_tenth():
    heads = CellHeads(4, ("symbol",))
    with torch.no_grad():
        heads.linear.weight.zero_()
        heads.linear.bias.zero_()
    truth = {"symbol": torch.tensor([0, 4]), "box": torch.zeros(2, 4)}
    terms, accuracy = heads(torch.zeros(2, 4), truth)
    classes = torch.tensor(1.0 + len(SYMBOLS))
    torch.testing.assert_close(terms["symbol"], classes.log())  # uniform: the weights cancel
    assert accuracy["symbol"] == 0 and terms["box"] == 0
    heads.linear.bias.data[4] = 50.0  # now every cell is called symbol 4: only the empty one is wrong
    terms, accuracy = heads(torch.zeros(2, 4), truth)
    torch.testing.assert_close(terms["symbol"], torch.tensor(50 * 0.1 / 1.1))
    assert accuracy["symbol"] == 1


def fit(module, data):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=2,
        limit_val_batches=1,
    )
    trainer.fit(module, data)


def changed(before: dict, module) -> set[str]:
    """First parts of the names of parameters that are no longer what they were."""
    return {name.split(".")[0] for name, value in module.named_parameters() if not value.equal(before[name])}


def copied(module) -> dict:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


class SmallFrames(GlyphFrames):
    def _fixed(self, split):
        loader = super()._fixed(split)
        loader.dataset.clips.image_size = tiny.SIDE
        return loader

    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.dataset.clips.image_size = tiny.SIDE
        return loader


def test_cells_train_the_image_encoder_of_git_and_nothing_else():
    model = tiny.git()
    before = copied(model)
    fit(CellTrainer(model), SmallFrames(batch_size=4, epoch=8, val_frames=4))
    assert changed(before, model) == {"image_encoder"}


def test_a_fit_without_an_end_is_refused():
    endless = pl.Trainer(accelerator="cpu", max_epochs=-1, max_time="00:00:01:00", logger=False,
                         enable_checkpointing=False, enable_progress_bar=False)  # fmt: skip
    with pytest.raises(ValueError, match="give the trainer max_steps or max_epochs"):
        endless.fit(CellTrainer(tiny.backbone()), SmallFrames(batch_size=4, epoch=8, val_frames=4))


def test_cells_train_a_backbone():
    net = tiny.backbone()
    before = copied(net)
    fit(CellTrainer(net), SmallFrames(batch_size=4, epoch=8, val_frames=4))
    assert changed(before, net) == {"net"}


def test_frames_never_repeat_from_epoch_to_epoch():
    data = GlyphFrames(batch_size=4, epoch=8)
    data.trainer = type("Trainer", (), {"current_epoch": 0})
    first = next(iter(data.train_dataloader()))["frames"]
    data.trainer.current_epoch = 1
    assert not first.equal(next(iter(data.train_dataloader()))["frames"])


def masked_clips():
    sizes = {
        "train_clips": 8,
        "val_clips": 4,
        "batch_size": 4,
        "num_frames": tiny.FRAMES,
        "image_size": tiny.SIDE,
    }
    return GlyphData(**sizes, captions_per_clip=2, masks=True)


def test_the_teacher_learns_captions_and_cells_together():
    model = tiny.git()
    for embedding in model.temporal:
        embedding.data.zero_()
    module = TeacherTrainer(model)
    assert all(embedding.std() > 0.1 for embedding in model.temporal)  # zeros were drawn anew
    before = copied(model)
    fit(module, masked_clips())
    assert changed(before, model) == {name.split(".")[0] for name in before}


def test_the_teachers_eyes_can_be_left_alone_at_first():
    model = tiny.git()
    before = copied(model)
    fit(TeacherTrainer(model, freeze=2), masked_clips())
    assert changed(before, model) == {name.split(".")[0] for name in before} - {"image_encoder"}
    assert all(p.requires_grad for p in model.image_encoder.parameters())
