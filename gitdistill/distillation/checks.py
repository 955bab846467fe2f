"""Checks during training: finite losses, and terms that reach the student."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gitdistill.decoding.loop import eval_mode
from gitdistill.distillation.distributed import on_any_rank


class LossWatch:
    """Checks the loss of every step: at once on a CPU, and one step later on an accelerator, so that no step waits."""

    def __init__(self):
        self.unchecked = []

    def check(self, loss: Tensor, terms: dict[str, Tensor], where: str, clips: Tensor | None) -> None:
        """Take this step's loss, its terms and its clips. ValueError if the one that is due is not finite."""
        values = {name: value.detach() for name, value in terms.items()}
        self.unchecked.append((loss.detach(), values, where, clips))
        self.finish(waiting=0 if loss.device.type == "cpu" else 1)

    def finish(self, waiting: int = 0) -> None:
        """Check all steps but the last `waiting` ones."""
        while len(self.unchecked) > waiting:
            check_finite(*self.unchecked.pop(0))


def check_finite(loss: Tensor, terms: dict[str, Tensor], where: str, clips: Tensor | None) -> None:
    """A ValueError that names the step, its terms and its clips if the loss is not finite on any rank."""
    finite = bool(loss.isfinite())
    if not on_any_rank(not finite, loss.device):
        return
    if finite:
        raise ValueError(f"the loss of another rank is not finite in {where}")
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
    named = "" if clips is None else f", clips {clips.tolist()}"
    advice = "try a lower lr, a longer warmup or gradient_clip_val"
    raise ValueError(f"the loss is not finite in {where}{named} ({values}): {advice}")


def check_gradients(module, batch: dict) -> None:
    """A ValueError naming a term of a `DistillationTrainer` that does not reach the student where it should.

    Every term must reach the student's backbone, and every term about captions its decoder, too. A term that trains
    only projectors compares a detached activation or a wrong path. Nothing is changed.
    """
    student = module.student
    with gradients(student, True), torch.enable_grad():
        values = module.unweighted_terms(batch)
        for term in module.terms:
            for part in ["backbone"] if term.image_only else ["backbone", "layers"]:
                parameters = list(getattr(student, part, nn.Module()).parameters())
                if parameters and not reaches(values[term.name], parameters):
                    raise ValueError(
                        f"the loss {term.name} does not reach the student's {part}: are its features detached?"
                    )


def reaches(value: Tensor, parameters: list[Tensor]) -> bool:
    """Does `value` have a gradient by any of the parameters?"""
    if not value.requires_grad:
        return False
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None for gradient in found)


@contextmanager
def gradients(module: nn.Module, wanted: bool):
    """Eval mode inside, and gradients for all parameters or for none; afterwards all is as it was."""
    required = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        with eval_mode(module):
            module.requires_grad_(wanted)
            yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
