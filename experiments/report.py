"""Means, differences with intervals and pictures from an experiment's table of runs."""

import csv
import math
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from gitdistill.models.storage import write_whole
from gitdistill.viz import plots

SCORES = {  # what the picture shows
    "test/facts_precision": "facts right",
    "unseen/facts_precision": "facts right, unseen pairs",
    "test/cider": "CIDEr",
}
FACTS = "test/facts_precision"  # what variants are compared by
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5th percentile of Student's t with 1, 2, ... degrees of freedom."""


def read_rows(path: Path) -> list[dict]:
    """A table's rows with numbers parsed; empty cells (a score that does not apply) are left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: number(text) for name, text in row.items() if text != "" or name == "against"}
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


def write_pictures(folder: Path, figures: dict) -> None:
    """Write figures as PNG, file name -> figure, all or none."""
    pictures = {name: plots.png(figure) for name, figure in figures.items()}
    write_whole(folder, {name: partial(Path.write_bytes, data=png) for name, png in pictures.items()})


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


def differences(rows: list[dict], score: str = FACTS) -> dict[str, list[float]]:
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
    ciders = differences(rows, "test/cider")
    found = {title: by_name(rows, score) for score, title in SCORES.items()}
    titles = [*found, "more than", "points of facts right", "CIDEr"]
    lines = [f"| | runs | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    teacher = [row for row in rows if row["name"] == "teacher"]
    for row in teacher:
        lines.append(f"| teacher | | {' | '.join(f'{row[score]:.2f}' for score in SCORES)} | | | |")
    for name, runs in found[SCORES[FACTS]].items():
        cells = [name, str(len(runs))]
        for scores in found.values():
            values = list(scores.get(name, {}).values())
            cells.append(f"{mean(values):.2f}" if values else "")
        if gained[name]:
            cells += [against[name], points(gained[name]), with_interval(ciders[name], "+.2f")]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def points(gained: list[float]) -> str:
    """Differences of shares as their mean in percentage points, with its interval where there is one."""
    return with_interval([100 * value for value in gained], "+.1f")


def with_interval(values: list[float], form: str) -> str:
    """Their mean, and its interval where there is one."""
    low, high = interval(values)
    return f"{mean(values):{form}}" + ("" if math.isnan(low) else f" ({low:{form}} to {high:{form}})")


def draw(folder: Path, experiment: str) -> None:
    """Write <experiment>.png beside the table, and of the labels also the curves of training."""
    rows = load(folder, experiment)
    figures = {f"{experiment}.png": figure(rows, experiment)}
    if experiment == "labels":
        figures[f"{experiment}_steps.png"] = by_steps(rows)
    write_pictures(folder, figures)


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
    gain = "points of facts right gained"
    ends = {}
    for name, values in differences(rows).items():
        if values:
            seen[name][gain] = [100 * value for value in values]
            ends[name] = {gain: tuple(100 * end for end in interval(values))}
    levels[gain] = {"": 0.0}
    labels = {name: f"{name} ({count})" if count > 1 else name for name, count in counts.items()}
    seen, ends = ({labels[name]: row for name, row in part.items()} for part in (seen, ends))
    return plots.dots(seen, ends, levels, title=finding(rows))


def finding(rows: list[dict]) -> str:
    """The largest gain whose interval lies above zero, as a sentence, with the number of runs and steps."""
    gained = {name: values for name, values in differences(rows).items() if values}
    runs = [row for row in rows if row["name"] != "teacher"]
    basis = f"{len(runs)} runs"
    sure = [name for name, values in gained.items() if interval(values)[0] > 0]
    if not sure:
        return f"No gain is surely larger than the differences between seeds ({basis})"
    best = max(sure, key=lambda name: mean(gained[name]))
    against = next(row["against"] for row in rows if row["name"] == best)
    return (
        f"\u201c{best}\u201d gains {points(gained[best])} points of facts right\n"
        f"over \u201c{against}\u201d ({basis})"
    )


def captioned(name: str) -> int:
    """The number of captioned clips that the name of a variant of `labels` begins with."""
    return int(name.partition(" ")[0].replace(",", ""))


def worth(rows: list[dict], count: int = 300, score: str = FACTS) -> tuple[float, float, float]:
    """How many captioned clips make a student without a teacher as good as `count` with one; and the fewest and the
    most, by the seeds of the student with a teacher.

    Scores without a teacher are means over seeds, interpolated over the logarithm of the number of clips. nan where the
    student with a teacher is better than with the most captions, or worse than with the fewest."""
    found = by_name(rows, score)
    alone = sorted(
        (captioned(name), mean(runs.values()))
        for name, runs in found.items()
        if name.endswith(": captions alone")
    )
    taught = list(found[f"{count:,} captioned: teacher"].values())

    def clips(value: float) -> float:
        for (fewer, low), (more, high) in zip(alone, alone[1:]):
            if low <= value <= high:
                return fewer * (more / fewer) ** ((value - low) / (high - low))
        return math.nan

    return clips(mean(taught)), clips(min(taught)), clips(max(taught))


def headline(rows: list[dict], count: int = 300) -> str:
    """`worth` as a sentence; empty if the table lacks these runs."""
    if f"{count:,} captioned: teacher" not in by_name(rows, FACTS):
        return ""
    clips, low, high = (f"{round(value, -2):,.0f}" for value in worth(rows, count))
    return f"A teacher and {count} captioned clips are worth {clips} captioned ones ({low} to {high} by seed)"


def by_steps(rows: list[dict]):
    """Facts right in validation against steps, with and without a teacher, a panel for each number of captions.

    A point is the best so far, averaged over seeds, with its interval. A run that ended early keeps its best."""
    teacher = next((row for row in rows if row["name"] == "teacher"), {})
    panels, levels = {}, {}
    for label, kind in {"captions alone": "captions alone", "with a teacher": "teacher"}.items():
        for name in dict.fromkeys(row["name"] for row in rows if row["name"].endswith(f": {kind}")):
            curves = [best_so_far(row) for row in rows if row["name"] == name]
            steps = sorted({step for curve in curves for step in curve})
            values = [[max(v for s, v in curve.items() if s <= step) for curve in curves] for step in steps]
            marks = [(mean(row), *(interval(row) if len(row) > 1 else 2 * (mean(row),))) for row in values]
            panel = name.partition(":")[0]
            panels.setdefault(panel, {})[label] = steps, marks
            levels[panel] = {"the teacher, test clips": teacher[FACTS]}
    figure = plots.curves(panels, levels=levels, ylabel="facts right (validation)", title=headline(rows))
    for axes in figure.axes:
        axes.set_ylim(0, 1.05)
    return figure


def best_so_far(row: dict) -> dict[int, float]:
    """Step -> the share of right facts in validation, or the best before."""
    found, best = {}, 0.0
    steps = {int(name.partition("@")[2]): value for name, value in row.items() if name.startswith("val/")}
    for step, value in sorted(steps.items()):
        found[step] = best = max(best, value)
    return found
