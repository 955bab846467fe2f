"""Do the networks know when they are wrong? Confidence against correctness, of words and of whole captions.

    python experiments/calibration.py             writes data/experiments/calibration.csv and two pictures
    python experiments/calibration.py --clips 50 --out runs/calibration      fewer clips

Words: at each place of a true caption, the probability of the likeliest word, which is right if the caption goes on
with it. Captions: the greedy caption's mean probability of a word (the geometric mean), right if all facts that it
states are. Intervals are 95 % bootstrap intervals over clips.

Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599) divides all logits by one number, fitted on
validation clips. It changes how sure a network is of its words, and not which word is the likeliest.
"""

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from report import write_pictures, write_rows
from shipped import arguments, first_clips, networks
from torch.nn import functional as F

from gitdistill.decoding import greedy
from gitdistill.inspection import (
    bootstrap,
    calibration_error,
    mean_risk,
    reliability,
    risk_coverage,
    word_confidence,
)
from gitdistill.models.tokenizer import to_text
from gitdistill.viz import plots
from gitdistill.world.facts import facts_scores

KEPT = 0.8  # of the captions, in the table


def token_ids(tokenizer, clip) -> torch.Tensor:
    """The clip's first caption [T]."""
    return torch.tensor(tokenizer(clip.captions[0])["input_ids"])


def words(network, tokenizer, clips: list, temperature: float = 1.0) -> tuple:
    """Confidence, right and clip of each word of each clip's first caption."""
    found = [word_confidence(network, clip.frames, token_ids(tokenizer, clip), temperature) for clip in clips]
    confidence, right = (np.concatenate(part) for part in zip(*found))
    return confidence, right, np.repeat(np.arange(len(clips)), [len(part) for part, _ in found])


@torch.no_grad()
def best_temperature(network, tokenizer, clips: list) -> float:
    """The temperature at which the words of these clips' first captions are likeliest."""
    tokens = [token_ids(tokenizer, clip) for clip in clips]
    logits = [network(clip.frames[None], text[None]).logits[0, :-1] for clip, text in zip(clips, tokens)]
    logits, targets = torch.cat(logits), torch.cat([text[1:] for text in tokens])
    return min(np.geomspace(0.25, 4, 161).tolist(), key=lambda t: F.cross_entropy(logits / t, targets).item())


def captions(network, tokenizer, clips: list) -> tuple:
    """Confidence, right and clip of each clip's greedy caption."""
    confidence, right = [], []
    for clip in clips:
        decoded = greedy(network, clip.frames[None])
        text = to_text(decoded.tokens[:, 0], tokenizer)
        confidence.append(math.exp(float(decoded.scores)))
        right.append(facts_scores(text, [clip.scene])["all_right"])
    return np.array(confidence), np.array(right), np.arange(len(clips))


def risk_at(confidence, right, coverage: float = KEPT) -> float:
    """The share of wrong ones among the most confident `coverage` of all."""
    return float(risk_coverage(confidence, right)[1][math.ceil(coverage * len(right)) - 1])


def run(networks: dict, tokenizer, clips: list, val_clips: list) -> tuple[list[dict], dict]:
    """A row for each network and kind, and what the pictures show: kind -> network -> (confidence, right)."""
    rows, seen = [], {"words": {}, "captions": {}}
    for name, network in networks.items():
        temperature = best_temperature(network, tokenizer, val_clips)
        scaled = f"words, temperature {temperature:.2f}"
        looks = {"words": words, scaled: partial(words, temperature=temperature), "captions": captions}
        for kind, look in looks.items():
            confidence, right, clip = look(network, tokenizer, clips)
            if kind in seen:
                seen[kind][name] = confidence, right
            row = {"network": name, "kind": kind, "number": len(right), "right": float(np.mean(right))}
            row["confidence"] = float(np.mean(confidence))
            for score, measure in (("error", calibration_error), ("risk", mean_risk), ("risk_80", risk_at)):
                found = bootstrap((confidence, right), clip, measure)
                row |= dict(zip((score, f"{score}_low", f"{score}_high"), found))
            rows.append(row)
    return rows, seen


def table(rows: list[dict]) -> list[str]:
    """The README's table."""
    titles = f"| | | right | confidence | calibration error | wrong of the surest {KEPT:.0%} | mean risk |"
    lines = [titles, "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{float(row[k]):.1%}" for k in ("right", "confidence")]
        for k in ("error", "risk_80", "risk"):
            value, low, high = (float(row[f"{k}{end}"]) for end in ("", "_low", "_high"))
            cells.append(f"{value:.1%} ({low:.1%} to {high:.1%})")
        lines.append(f"| {row['network']} | {row['kind']} | {' | '.join(cells)} |")
    return lines


def draw(rows: list[dict], seen: dict, folder: Path) -> None:
    """Write calibration.png and coverage.png."""
    errors = [f"{row['network']} {row['error']:.1%}" for row in rows if row["kind"] == "words"]
    wrong = ", ".join(
        f"{row['network']} {row['risk_80']:.0%} (of all {1 - row['right']:.0%})"
        for row in rows
        if row["kind"] == "captions"
    )
    lines, risks = {}, {}
    for kind, found in seen.items():
        for name, values in found.items():
            sure, share, _ = map(list, zip(*reliability(*values)))
            lines.setdefault(f"{kind}: share right", {})[name] = sure, share
            coverage, risk = risk_coverage(*values)
            some = np.linspace(len(risk) // 20, len(risk) - 1, 40).astype(int)  # the first ones are noise
            risks.setdefault(f"{kind}: share wrong", {})[name] = coverage[some], risk[some]
        ends = (0.0, 1.0)
        lines[f"{kind}: share right"]["as confident as right"] = ends, ends
    figures = {
        "calibration.png": plots.curves(
            lines, xlabel="confidence", title="Calibration error of words: " + ", ".join(errors)
        ),
        "coverage.png": plots.curves(
            risks,
            xlabel="share of the most confident",
            title=f"Wrong captions among the surest {KEPT:.0%}: {wrong}",
        ),
    }
    write_pictures(folder, figures)


def main() -> int:
    options = arguments(__doc__, clips=500).parse_args()
    rows, seen = run(*networks(), first_clips(options.clips), first_clips(options.clips, split="val"))
    write_rows(options.out / "calibration.csv", rows)
    draw(rows, seen, options.out)
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
