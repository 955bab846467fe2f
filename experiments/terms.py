"""Seven losses from the literature as terms of `DistillationTrainer`, each a few lines.

    DistillationTrainer(teacher, student, terms={"dist": (dist, 1.0)})

or in a configuration file, started from the repository's folder: `terms: {experiments.terms.dist: 1.0}`.
`gitdistill.distillation.custom_terms` says what a term sees, and `python experiments/run.py losses` compares them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gitdistill.distillation.custom_terms import uses
from gitdistill.metrics import cider_scores
from gitdistill.models.tokenizer import to_text


def next_words(student, teacher) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits [R, V] of all real next tokens of a batch, and these tokens [R]."""
    real = student.mask[:, :, 1:]
    return student.logits[:, :, :-1][real], teacher.logits[:, :, :-1][real], student.tokens[:, :, 1:][real]


def decoupled(student, teacher, alpha: float = 1.0, beta: float = 2.0) -> Tensor:
    """KL split in two: how sure of the right word, and how the other words share the rest.

    Decoupled knowledge distillation, Zhao et al. 2022 (https://arxiv.org/abs/2203.08679).
    """
    ours, theirs, words = next_words(student, teacher)
    right = F.one_hot(words, ours.shape[-1]).bool()
    log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
    split = [
        torch.stack([x[right], x.masked_fill(right, -1e4).logsumexp(-1)], dim=-1) for x in (log_q, log_p)
    ]
    others = [x.masked_fill(right, -1e4).log_softmax(-1) for x in (ours, theirs)]
    target = F.kl_div(split[0], split[1], log_target=True, reduction="batchmean")
    return alpha * target + beta * F.kl_div(others[0], others[1], log_target=True, reduction="batchmean")


def dist(student, teacher) -> Tensor:
    """One minus the correlation of both networks' probabilities, over the words of a token and the tokens of a word.

    DIST, Huang et al. 2022 (https://arxiv.org/abs/2205.10536).
    """
    q, p, _ = (x.softmax(-1) if x.is_floating_point() else x for x in next_words(student, teacher))

    def apart(a: Tensor, b: Tensor) -> Tensor:
        centred = (x - x.mean(-1, keepdim=True) for x in (a, b))
        return 1 - F.cosine_similarity(*centred, dim=-1).mean()

    return apart(q, p) + apart(q.T, p.T)


def standardised(student, teacher, temperature: float = 2.0) -> Tensor:
    """KL of logits with mean 0 and deviation 1, so that the student need not match the teacher's scale.

    Logit standardisation, Sun et al. 2024 (https://arxiv.org/abs/2403.01427).
    """
    ours, theirs, _ = next_words(student, teacher)
    log_q, log_p = (F.layer_norm(x, x.shape[-1:]).div(temperature).log_softmax(-1) for x in (ours, theirs))
    return temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


@uses("image_features")
def relational(student, teacher) -> Tensor:
    """Distances between the clips of a batch, in units of their mean: the student's should be the teacher's.

    Relational knowledge distillation, Park et al. 2019 (https://arxiv.org/abs/1904.05068).
    """

    def distances(features: Tensor) -> Tensor:
        found = F.pdist(features.mean((1, 2)))  # of the clips' mean features
        return found / found.mean().clamp(min=1e-6)

    return F.smooth_l1_loss(distances(student.image_features), distances(teacher.image_features))


@uses("image_features")
def activation_maps(student, teacher) -> Tensor:
    """Where the image features are strong: squared channels, summed, normalised over the grid.

    Attention transfer, Zagoruyko and Komodakis 2017 (https://arxiv.org/abs/1612.03928).
    """
    maps = (
        F.normalize(x.square().mean(-1).flatten(0, 1), dim=-1)
        for x in (student.image_features, teacher.image_features)
    )
    return F.mse_loss(*maps, reduction="none").sum(-1).mean()


@uses("image_features")
class Contrastive(nn.Module):
    """Of all clips of the batch, the student's features should find the teacher's of the same clip.

    Contrastive representation distillation, Tian et al. 2020 (https://arxiv.org/abs/1910.10699), with the other clips
    of the batch as negatives instead of a memory bank. Widths of the image features of both networks.
    """

    def __init__(self, student_width: int, teacher_width: int, width: int = 64, temperature: float = 0.1):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(student_width, width), nn.Linear(teacher_width, width)])
        self.temperature = temperature

    def forward(self, student, teacher) -> Tensor:
        clips = (view.image_features.mean((1, 2)) for view in (student, teacher))
        ours, theirs = (F.normalize(head(x), dim=-1) for head, x in zip(self.heads, clips))
        scores = ours @ theirs.T / self.temperature
        right = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


class SelfCritical:
    """Drawn captions become likelier where they score better than those of the other clips, and else less likely.

    Self-critical training, Rennie et al. 2017 (https://arxiv.org/abs/1612.00563). The baseline here is the mean reward
    of the *other* drawn captions, which spares a greedy search and leaves the gradient unbiased. Needs `own_captions`.
    reward: from drawn captions long [R, T] and all other captions of their clips [R, K, T] to a number each; clips
    without another caption are left out.
    """

    def __init__(self, reward):
        self.reward = reward

    def __call__(self, student, teacher) -> Tensor:
        drawn = student.drawn.nonzero().flatten()
        tokens, mask = student.tokens[:, drawn[0]], student.mask[:, drawn[0], 1:]
        others, known = student.tokens[:, ~student.drawn], student.mask[:, ~student.drawn, 1:].any(-1).any(-1)
        chosen = known & mask.any(-1)
        log_q = student.logits[:, drawn[0], :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        log_q = (log_q * mask).sum(-1)[chosen]
        if len(log_q) < 2:
            return 0 * student.logits.sum()
        rewards = torch.as_tensor(self.reward(tokens[chosen], others[chosen])).to(log_q)
        baseline = (rewards.sum() - rewards) / (len(rewards) - 1)
        return -((rewards - baseline) * log_q).mean()


def cider_reward(tokenizer):
    """A reward for `SelfCritical`: CIDEr-D by the other captions, words weighed by how rare they are in the batch."""

    def reward(drawn: Tensor, others: Tensor):
        references = [[text for text in to_text(rows, tokenizer) if text.strip()] for rows in others]
        return cider_scores(to_text(drawn, tokenizer), references)

    return reward
