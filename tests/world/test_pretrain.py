"""What the embedded networks are taught before they caption."""

import pytorch_lightning as pl
import tiny
import torch
from fits import QUIET

from gitdistill.world import Clip, Scene, Toy
from gitdistill.world.lexicon import COLOURS, OBJECTS
from gitdistill.world.pretrain import (
    CellHeads,
    CellTrainer,
    ToyboxFrames,
    cell_truth,
    embedded_git,
    mask_boxes,
)

CAR = Toy("car", "yellow", x=20, y=20)
CAT = Toy("cat", x=100, y=100)


def test_each_cell_belongs_to_what_covers_most_of_it():
    masks = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    masks[0, 0, 0:16, 0:16] = True  # all of the upper left cell of a 2 x 2 grid
    masks[1, 0, 8:32, 16:32] = True  # half of the upper right cell, all of the lower right one
    masks[0, 0, 28:32, 0:4] = True  # a speck in the lower left cell: 16 pixels of 256
    truth = cell_truth(Clip(None, masks, [], Scene([CAR, CAT])), least=0.1)
    car, cat = (1 + list(OBJECTS).index(name) for name in ("car", "cat"))
    assert truth["object"].tolist() == [[[car, cat], [0, cat]]]
    yellow, own = 2 + COLOURS.index("yellow"), 1
    assert truth["colour"].tolist() == [[[yellow, own], [0, own]]]
    box = torch.tensor([24, 20, 16, 24]) / 32  # it spans x 16..32 and y 8..32, in both of its cells
    torch.testing.assert_close(truth["box"][0, :, 1], torch.stack([box, box]))


def test_boxes_of_masks():
    masks = torch.zeros(2, 6, 10, dtype=torch.bool)
    masks[0, 1:4, 2] = True
    torch.testing.assert_close(mask_boxes(masks), torch.tensor([[0.25, 2.5 / 6, 0.1, 0.5], [0, 0, 0, 0]]))


def test_right_answers_cost_nothing_and_empty_cells_count_a_tenth():
    heads = CellHeads(4)
    with torch.no_grad():
        heads.linear.weight.zero_()
        heads.linear.bias.zero_()
    truth = {kind: torch.tensor([0, 4]) for kind in ("object", "colour")} | {"box": torch.zeros(2, 4)}
    terms, accuracy = heads(torch.zeros(2, 4), truth)
    classes = torch.tensor(1.0 + len(OBJECTS))
    torch.testing.assert_close(terms["object"], classes.log())  # uniform: the weights cancel
    assert accuracy["object"] == 0 and terms["box"] == 0
    heads.linear.bias.data[4] = 50.0  # now every cell is called object 4: only the empty one is wrong
    terms, accuracy = heads(torch.zeros(2, 4), truth)
    torch.testing.assert_close(terms["object"], torch.tensor(50 * 0.1 / 1.1))
    assert accuracy["object"] == 1


def changed(model, make, data) -> set[str]:
    """First parts of the names of the parameters that a fit of `make(model)` changes."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = pl.Trainer(max_steps=2, limit_val_batches=1, enable_checkpointing=False, **QUIET)
    trainer.fit(make(model), data)
    return {name.split(".")[0] for name, value in model.named_parameters() if not value.equal(before[name])}


def frames():
    data = ToyboxFrames(batch_size=4, epoch=8, val_frames=4)
    data.image_size = tiny.SIDE
    return data


def test_cells_train_a_backbone_or_the_image_encoder_of_git_and_nothing_else():
    assert changed(tiny.backbone(), CellTrainer, frames()) == {"net"}
    assert changed(tiny.git(), CellTrainer, frames()) == {"image_encoder"}


def test_frames_never_repeat_from_epoch_to_epoch():
    data = frames()
    data.trainer = type("Trainer", (), {"current_epoch": 0})
    first = next(iter(data.train_dataloader()))
    assert first["frames"].shape == (4, 1, 3, 32, 32) and first["object"].shape == (4, 1, 2, 2)
    data.trainer.current_epoch = 1
    assert not first["frames"].equal(next(iter(data.train_dataloader()))["frames"])


def test_a_new_teacher_tells_its_frames_apart():
    model = embedded_git()
    assert all(0.4 < embedding.std() < 0.6 for embedding in model.temporal)
    assert sum(parameter.numel() for parameter in model.parameters()) < 4e6
