"""What the embedded networks are taught before they caption."""

import pytest
import pytorch_lightning as pl
import tiny
import torch
from fits import QUIET

from gitdistill.world import GlyphData, Scene, Thing
from gitdistill.world.grammar import COLOURS, MOTIONS, RELATIONS, SYMBOLS
from gitdistill.world.pretrain import (
    CellHeads,
    CellTrainer,
    GlyphFrames,
    TeacherTrainer,
    cell_truth,
    mask_boxes,
)

CAT = Thing(list(SYMBOLS)[3], list(COLOURS)[2], "small", list(MOTIONS)[5])
DOG = Thing(list(SYMBOLS)[7], list(COLOURS)[4], "large", list(MOTIONS)[1])
BOTH = Scene((CAT, DOG), paths=(), turns=(), relation=None, order=(0, 1), moving=True, background=())


def test_each_cell_belongs_to_what_covers_most_of_it():
    masks = torch.zeros(1, 2, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, 0, 0:4, 0:4] = True  # all of the upper left cell of a 2 x 2 grid
    masks[0, 1, 0, 2:8, 4:8] = True  # half of the upper right cell, all of the lower right one
    masks[0, 0, 0, 7, 0] = True  # a speck in the lower left cell: 1 pixel of 16
    truth = cell_truth(masks, [BOTH], (2, 2), least=0.1)
    assert truth["symbol"].tolist() == [[[[4, 8], [0, 8]]]]
    assert truth["colour"].tolist() == [[[[3, 5], [0, 5]]]]
    assert truth["motion"].tolist() == [[[[6, 2], [0, 2]]]]
    # The second thing spans x 4..8 and y 2..8, in every cell it owns.
    for cell in (truth["box"][0, 0, 0, 1], truth["box"][0, 0, 1, 1]):
        torch.testing.assert_close(cell, torch.tensor([6, 5, 4, 6]) / 8)
    assert not truth["relation"].any()
    related = cell_truth(masks, [BOTH._replace(relation="left")], (2, 2))["relation"].flatten().tolist()
    left, right = (1 + list(RELATIONS).index(side) for side in ("left", "right"))
    assert related == [left, right, left, right]  # each thing's own, seen from the other


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


def changed(model, make, data) -> set[str]:
    """First parts of the names of the parameters that a fit of `make(model)` changes."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = pl.Trainer(max_steps=2, limit_val_batches=1, enable_checkpointing=False, **QUIET)
    trainer.fit(make(model), data)
    return {name.split(".")[0] for name, value in model.named_parameters() if not value.equal(before[name])}


def frames():
    data = GlyphFrames(batch_size=4, epoch=8, val_frames=4)
    data.image_size = tiny.SIDE
    return data


def test_cells_train_a_backbone_or_the_image_encoder_of_git_and_nothing_else():
    assert changed(tiny.backbone(), CellTrainer, frames()) == {"net"}
    assert changed(tiny.git(), CellTrainer, frames()) == {"image_encoder"}


def test_frames_never_repeat_from_epoch_to_epoch():
    data = frames()
    data.trainer = type("Trainer", (), {"current_epoch": 0})
    first = next(iter(data.train_dataloader()))
    assert first["frames"].shape == (4, 1, 3, 32, 32) and first["masks"].shape == (4, 2, 1, 32, 32)
    data.trainer.current_epoch = 1
    assert not first["frames"].equal(next(iter(data.train_dataloader()))["frames"])


@pytest.mark.parametrize("freeze", [0, 2])
def test_the_teacher_learns_captions_and_cells_together(freeze):
    model = tiny.git()
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    for embedding in model.temporal:
        embedding.data.zero_()

    def make(model):
        module = TeacherTrainer(model, freeze=freeze)
        assert all(embedding.std() > 0.1 for embedding in model.temporal)  # zeros were drawn anew
        return module

    picture = {"num_frames": tiny.FRAMES, "image_size": tiny.SIDE}
    data = GlyphData(8, 4, batch_size=4, **picture, captions_per_clip=2, masks=True)
    assert changed(model, make, data) == parts - ({"image_encoder"} if freeze else set())
    assert all(p.requires_grad for p in model.image_encoder.parameters())
