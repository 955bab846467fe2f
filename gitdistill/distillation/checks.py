"""Checks during training: the loss is finite, every term reaches the student, and what was frozen thaws."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gitdistill.distillation.distributed import on_any


class LossWatch:
    """Raises a ValueError when the loss is not finite on any rank: at once on the CPU.

    On an accelerator, which runs behind, it raises one step later, so that no step waits for its own loss.
    """

    def __init__(self):
        self.unchecked = None

    def check(self, loss: Tensor, terms: dict[str, Tensor], where: str, clips: Tensor | None) -> None:
        """Note the loss of this step, its terms, and its clips; check what is due."""
        step = loss.detach(), {name: value.detach() for name, value in terms.items()}, where, clips
        due, self.unchecked = (step, None) if loss.device.type == "cpu" else (self.unchecked, step)
        if due:
            check_finite(*due)

    def finish(self) -> None:
        """Check the last step."""
        due, self.unchecked = self.unchecked, None
        if due:
            check_finite(*due)


def check_finite(loss: Tensor, terms: dict[str, Tensor], where: str, clips: Tensor | None) -> None:
    """A ValueError that names the step, its terms and its clips if the loss is not finite on any rank."""
    finite = bool(loss.isfinite())
    if not on_any(not finite, loss.device):
        return
    if finite:
        raise ValueError(f"the loss of another rank is not finite in {where}")
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
    named = "" if clips is None else f", clips {clips.tolist()}"
    raise ValueError(
        f"the loss is not finite in {where}{named} ({values}): try a lower lr, a longer warmup or "
        "gradient_clip_val"
    )


def check_gradients(module, batch: dict) -> None:
    """A ValueError naming a term of a `DistillationTrainer` that does not reach the student where it should.

    Every term must reach the student's backbone, and every term about captions its decoder, too. A term that trains
    only projectors compares a detached activation or a wrong path.
    """
    found = gradients(module, batch)
    for term in module.terms:
        reached = {path.split(".")[0] for path, value in found[term.name].items() if value is not None}
        if not reached:
            raise ValueError(
                f"the loss {term.name} reaches no parameter of the student: is its side detached?"
            )
        parts = ["backbone"] + ["layers"] * (not term.image_only)
        missed = [part for part in parts if hasattr(module.student, part) and part not in reached]
        if missed:
            raise ValueError(
                f"the loss {term.name} reaches {', '.join(sorted(reached))} of the student, but not its "
                f"{' and '.join(missed)}"
            )


def gradients(module, batch: dict) -> dict[str, dict[str, Tensor | None]]:
    """Each unweighted term's gradient by the student's parameters; None where it does not reach.

    The student is in eval mode, a frozen backbone counts as trainable, and everything is restored after.
    """
    names, parameters = zip(*module.student.named_parameters())
    found = {}
    with restored(module.student), torch.enable_grad():
        module.student.requires_grad_(True).eval()
        for name, value in module.unweighted_terms(batch).items():
            reached = [None] * len(parameters)
            if value.requires_grad:
                reached = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            found[name] = dict(zip(names, reached))
    return found


@contextmanager
def restored(module: nn.Module):
    """A context after which every parameter has its old `requires_grad`, and every submodule its old mode."""
    required = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    try:
        yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for submodule, training in modes:
            submodule.training = training


@contextmanager
def frozen(module: nn.Module):
    """A context in which the module does not learn; whatever ends it, an interrupt included, undoes it."""
    with restored(module):
        module.requires_grad_(False).eval()
        yield
