"""Means, differences with intervals and a picture from an experiment's table of runs."""

import csv
import math
from pathlib import Path
from statistics import mean, stdev

from gitdistill.models.storage import write_whole
from gitdistill.viz import plots

SCORES = {  # what the picture shows
    "test/cider": "CIDEr",
    "unseen/cider": "CIDEr, unseen pairs",
    "test/motion_precision": "motions right",
}
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5th percentile of Student's t with 1, 2, ... degrees of freedom."""


def read_rows(path: Path) -> list[dict]:
    """A table's rows with numbers parsed; empty cells (a score that does not apply) are left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: number(text) for name, text in row.items() if text != ""} | {"against": row["against"]}
            for row in csv.DictReader(file)
        ]


def number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write the table, whole or not at all; numbers have six digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    write_whole(path.parent, {path.name: write})


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent runs (Student's t); nan for a single one."""
    if len(values) < 2:
        return math.nan, math.nan
    quantile = STUDENT_T[len(values) - 2] if len(values) <= len(STUDENT_T) + 1 else 2.262
    half = quantile * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def by_name(rows: list[dict], score: str) -> dict[str, dict[int, float]]:
    """Variant -> (seed -> score), in the order of the table, without the teacher and without NaN."""
    found = {}
    for row in rows:
        if row["name"] != "teacher" and not math.isnan(row.get(score, math.nan)):
            found.setdefault(row["name"], {})[row["seed"]] = row[score]
    return found


def differences(rows: list[dict], score: str = "test/cider") -> dict[str, list[float]]:
    """Variant -> for each seed, its score minus that of the variant that it is compared with."""
    found, against = by_name(rows, score), {row["name"]: row["against"] for row in rows}
    gained = {}
    for name, mine in found.items():
        theirs = found.get(against[name], {}) if against[name] != name else {}
        gained[name] = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    return gained


def load(folder: Path, experiment: str) -> list[dict]:
    path = folder / f"{experiment}.csv"
    rows = read_rows(path)
    if not rows:
        raise FileNotFoundError(f"there is no table {path}: run python experiments/run.py {experiment}")
    return rows


def table(folder: Path, experiment: str) -> str:
    """An experiment's means over seeds and differences, as lines of Markdown."""
    rows = load(folder, experiment)
    against, gained = {row["name"]: row["against"] for row in rows}, differences(rows)
    found = {title: by_name(rows, score) for score, title in SCORES.items()}
    lines = [f"| | runs | {' | '.join(found)} | CIDEr more than | |", "|---|---|" + "---|" * (len(found) + 2)]
    teacher = [row for row in rows if row["name"] == "teacher"]
    for row in teacher:
        lines.append(f"| teacher | | {' | '.join(f'{row[score]:.2f}' for score in SCORES)} | | |")
    for name, runs in found["CIDEr"].items():
        cells = [name, str(len(runs))]
        for scores in found.values():
            values = list(scores.get(name, {}).values())
            cells.append(f"{mean(values):.2f}" if values else "")
        if gained[name]:
            low, high = interval(gained[name])
            ends = "" if math.isnan(low) else f" ({low:+.2f} to {high:+.2f})"
            cells += [against[name], f"{mean(gained[name]):+.2f}{ends}"]
        else:
            cells += ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(folder: Path, experiment: str) -> None:
    """Write <experiment>.png beside the table."""
    picture = plots.png(figure(load(folder, experiment), experiment))
    write_whole(folder, {f"{experiment}.png": lambda path: path.write_bytes(picture)})


def figure(rows: list[dict], experiment: str):
    """Every run as a dot, a mean for each variant, and the difference to what it is compared with.

    Behind a variant's name stands the number of its runs, if there are several.
    """
    teacher = next((row for row in rows if row["name"] == "teacher"), {})
    seen, levels, counts = {}, {}, {}
    for score, title in SCORES.items():
        for name, runs in by_name(rows, score).items():
            seen.setdefault(name, {})[title] = list(runs.values())
            counts[name] = max(counts.get(name, 0), len(runs))
        if not math.isnan(teacher.get(score, math.nan)):
            levels[title] = {"teacher": teacher[score]}
    gain = "CIDEr gained"
    ends = {}
    for name, values in differences(rows).items():
        if values:
            seen[name][gain] = values
            ends[name] = {gain: interval(values)}
    levels[gain] = {"": 0.0}
    labels = {name: f"{name} ({count})" if count > 1 else name for name, count in counts.items()}
    seen, ends = ({labels[name]: row for name, row in part.items()} for part in (seen, ends))
    return plots.dots(seen, ends, levels, title=f"{experiment.capitalize()}: {finding(rows)}")


def finding(rows: list[dict]) -> str:
    """The largest gain whose interval lies above zero, as a sentence, with the number of runs and steps."""
    gained = {name: values for name, values in differences(rows).items() if values}
    runs = [row for row in rows if row["name"] != "teacher"]
    basis = f"{len(runs)} runs of {max((row['steps'] for row in runs), default=0):,} steps"
    sure = [name for name, values in gained.items() if interval(values)[0] > 0]
    if not sure:
        return f"no gain is surely larger than the differences between seeds ({basis})"
    best = max(sure, key=lambda name: mean(gained[name]))
    low, high = interval(gained[best])
    against = next(row["against"] for row in rows if row["name"] == best)
    return (
        f"\u201c{best}\u201d gains {mean(gained[best]):+.2f} CIDEr ({low:+.2f} to {high:+.2f})\n"
        f"over \u201c{against}\u201d ({basis})"
    )
