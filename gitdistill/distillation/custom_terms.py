"""Loss terms of one's own: a function of what the student and the teacher make of a batch, which gives a scalar.

    @uses("text_features")
    def distance(student, teacher):
        return losses.relation(student.text_features.flatten(0, 1), teacher.text_features.flatten(0, 1), heads=1)

    DistillationTrainer(teacher, student, terms={"distance": (distance, 0.5)})

`experiments/terms.py` has seven from the literature.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pkgutil import resolve_name

import torch
from torch import Tensor

from gitdistill.distillation import losses
from gitdistill.distillation.targets import FeaturePair
from gitdistill.distillation.terms import LossTerm, Outputs, on_one_grid


@dataclass
class View:
    """What one network makes of a batch. A term gets the student's and the teacher's, with what it `uses`.

    | field | shape | |
    |---|---|---|
    | tokens | long [B, K, T] | the captions that both networks read |
    | mask | bool [B, K, T] | false where a token is padding |
    | drawn | bool [K] | true where the student drew the captions itself (`own_captions`) |
    | logits | [B, K, T, V] | row t is about token t + 1, so the last one is about nothing |
    | image_features | [B, F, N, D] | of the first feature pair, over the teacher's grid; widths differ |
    | text_features | [B, K, T, D] | of the last decoder layer; widths differ |
    | attention | [B, K, T, F*N] | from text to image, over the student's grid, averaged over heads and layers |

    The first three are the same in both views. The teacher's tensors carry no gradient. With a cache its logits are
    log-probabilities of the stored words; what is left is spread evenly over all others.
    """

    tokens: Tensor
    mask: Tensor
    drawn: Tensor
    logits: Tensor | None = None
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    attention: Tensor | None = None


USABLE = ("logits", "image_features", "text_features", "attention")


def uses(*names: str) -> Callable:
    """Declare which of `USABLE` a term reads, as a decorator. A term that declares nothing reads logits."""
    if unknown := set(names) - set(USABLE):
        raise ValueError(f"a term can use {', '.join(USABLE)}, not {', '.join(sorted(unknown))}")

    def declare(term):
        term.uses = names
        return term

    return declare


def named_terms(terms: dict) -> dict[str, tuple[Callable, float]]:
    """Functions and weights by name, from the argument `terms` of `DistillationTrainer`.

    In a configuration file a term is called by where it lies: {"experiments.terms.dist": 0.5}.
    """
    found = {}
    for name, entry in terms.items():
        if callable(entry):
            raise ValueError(f"the loss term {name} lacks a weight: give (function, weight)")
        try:
            function, weight = entry if isinstance(entry, tuple | list) else (resolve_name(name), entry)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"there is no loss term {name}: {error}") from None
        found[name.rpartition(".")[2]] = function, float(weight)
    return found


def custom_term(name: str, function: Callable, pairs: list[FeaturePair]) -> LossTerm:
    """The term `name`. `pairs` are those of `layer_pairs`."""
    used = getattr(function, "uses", ("logits",))
    layers = {"image_features": "features", "text_features": "hidden"}
    own = {kind: next(pair for pair in pairs if pair.term == term) for kind, term in layers.items()}
    own = {kind: replace(pair, term=name) for kind, pair in own.items() if kind in used}
    compute = partial(custom_loss, name=name, function=function, pairs=own, used=used)
    return LossTerm(name, compute, tuple(own.values()), tuple(kind for kind in used if kind not in own))


def custom_loss(x: Outputs, name: str, function: Callable, pairs: dict[str, FeaturePair], used) -> Tensor:
    student, teacher = views(x, pairs, used)
    value = function(student, teacher)
    if not isinstance(value, Tensor) or value.dim():
        raise ValueError(f"the loss term {name} must give a scalar tensor, not {value!r:.60}")
    return value


def views(x: Outputs, pairs: dict[str, FeaturePair], used) -> tuple[View, View]:
    """The student's and the teacher's view of a batch."""
    clips, captions, _ = x.tokens.shape
    drawn = torch.arange(captions, device=x.tokens.device) >= captions - x.num_own
    student, teacher = (View(x.tokens, x.tokens != x.pad_id, drawn) for _ in range(2))
    for kind in used:
        if kind in pairs:
            ours, theirs = pairs[kind].keys
            ours, theirs = x.student[ours], x.teacher[theirs]
            if pairs[kind].of_image:
                ours, theirs = on_one_grid(ours, theirs)
        else:
            ours, theirs = x.student[kind], x.teacher[kind]
            if isinstance(theirs, losses.TopK):
                full = losses.expand(theirs, ours.shape[-1])
                theirs = torch.cat([full, full.new_zeros(len(full), 1, full.shape[2])], dim=1)
        setattr(student, kind, ours.unflatten(0, (clips, -1)))
        setattr(teacher, kind, theirs.unflatten(0, (clips, -1)))
    return student, teacher
