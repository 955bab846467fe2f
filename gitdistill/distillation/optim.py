"""The optimiser and its schedule, shared by every trainer."""

import math

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the hidden weight matrices, AdamW for all else, as one optimiser with one learning rate.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises each matrix's
    momentum; its update is scaled to AdamW's size (`match_rms_adamw`, Liu et al. 2025,
    https://arxiv.org/abs/2502.16982), so `lr` and `weight_decay` mean the same for both parts. Embeddings,
    the head, convolutions, norms and biases stay with AdamW.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float):
        matrices, others = split_parameters(model)
        self.parts = [torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay)]
        if matrices:
            self.parts.append(
                torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # The parts work on this optimiser's own groups, so that schedulers and gradient scalers reach them.
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state):
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def optimizer_and_schedule(
    module: nn.Module, trainer, lr: float, weight_decay: float, warmup: int, muon: bool
):
    """Optimiser and schedule of a fit, as Lightning's `configure_optimizers` returns them.

    ValueError if the number of steps is unknown; the cosine needs it.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 <= steps < math.inf:
        advice = "give the trainer max_steps or max_epochs (with a stream of data, max_steps)"
        raise ValueError(f"the learning rate needs the number of steps: {advice}")
    if muon:
        optimizer = MuonAdamW(module, lr, weight_decay)
    else:
        trainable = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr, weight_decay=weight_decay)
    schedule = warmup_cosine(optimizer, warmup, int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def split_parameters(model: nn.Module) -> tuple[list, list]:
    """Trainable parameters as (weights of inner linear layers, everything else)."""
    outer = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    inner = {id(m.weight) for name, m in linear.items() if name.rpartition(".")[2] != "head"} - outer
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [p for p in parameters if id(p) in inner], [p for p in parameters if id(p) not in inner]


def warmup_cosine(optimizer, warmup: int, steps: int, floor: float = 0.01):
    """Learning rate rising linearly over `warmup` steps, then a half cosine down to `floor` times its peak."""

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
