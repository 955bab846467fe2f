"""Does a captioner know when it is wrong? Confidence against correctness.

Guo et al. 2017 (https://arxiv.org/abs/1706.04599) for the calibration error, Geifman and El-Yaniv 2017
(https://arxiv.org/abs/1705.08500) for risk against coverage. Confidences and correctness are arrays of length N.
`bootstrap` gives intervals: its `statistic` takes any of these scores.
"""

import numpy as np
import torch
from torch import Tensor


def reliability(confidence, right, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean confidence, share that is right, and size of each of `bins` groups of equal size, by rising confidence."""
    confidence, right = _checked(confidence, right)
    order = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(right)))
    return [(float(confidence[part].mean()), float(right[part].mean()), len(part)) for part in order]


def calibration_error(confidence, right, bins: int = 10) -> float:
    """Expected calibration error: the mean distance of confidence and share right over the groups, 0 to 1.

    It is never negative, so chance alone makes it larger than 0, and its bootstrap interval lies somewhat too high.
    """
    groups = reliability(confidence, right, bins)
    return sum(size * abs(sure - share) for sure, share, size in groups) / len(right)


def risk_coverage(confidence, right) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk [N]: among the most confident 1, 2, ..., N of all, what share is wrong. Ties in given order."""
    confidence, right = _checked(confidence, right)
    order, count = np.argsort(-confidence, kind="stable"), np.arange(1, len(right) + 1)
    return count / len(right), np.cumsum(1 - right[order]) / count


def mean_risk(confidence, right) -> float:
    """The area under the risk-coverage curve: the lower, the better does confidence tell right from wrong."""
    return float(risk_coverage(confidence, right)[1].mean())


@torch.no_grad()
def word_confidence(model, frames: Tensor, tokens: Tensor, temperature=1.0) -> tuple[np.ndarray, np.ndarray]:
    """For each next token of a caption [T], after frames [F, 3, H, W]: the largest probability, and was it right?

    `temperature` divides the logits.
    """
    probabilities = (model(frames[None], tokens[None]).logits[0, :-1] / temperature).softmax(-1)
    confidence, words = probabilities.max(-1)
    return confidence.cpu().numpy(), (words.cpu() == tokens[1:].cpu()).numpy()


def _checked(confidence, right) -> tuple[np.ndarray, np.ndarray]:
    confidence, right = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    if confidence.ndim != 1 or confidence.shape != right.shape or not len(right):
        raise ValueError(f"confidence {confidence.shape} and right {right.shape} must be [N], N above 0")
    return confidence, right
