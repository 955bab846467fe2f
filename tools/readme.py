"""Fill the tables of README.md and of the folders' README.md from measured files; copy results of `make run` to data/.

    python tools/readme.py           after `make run`: copies runs/results.csv, minutes.csv and overview.png to data/,
                                     draws the picture of both networks, and fills the tables
    python tools/readme.py --keep    only fills the tables, from what is in data/
    python tools/readme.py --check   exit code 1 if a page does not say what the files say

The scores of the embedded networks come from data/*/scores.json, which their training wrote; what the experiments
and benchmarks found, from data/experiments and benchmarks/*.json; what runs will take, from `gitdistill.use.plan`.
"""

import argparse
import csv
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "benchmarks")]
import decoding  # noqa: E402
import real_size  # noqa: E402
import report  # noqa: E402
import smaller  # noqa: E402
import step  # noqa: E402

from gitdistill import GenerativeImageTextTeacher, StudentCandidateV1  # noqa: E402
from gitdistill.use import plan  # noqa: E402
from gitdistill.viz import plots  # noqa: E402

EXPERIMENTS = ("labels", "losses", "sizes", "temperature")
MEASURES = ROOT / "data" / "experiments"
PLANS = {  # of configs/README.md: the block's name and the command's arguments
    "laptop": "--config configs/student.yaml --clips 12000 --tflops 0.05",
    "gpu": "--config configs/coco.yaml --clips 113287 --tflops 60",
    "machine": "--config configs/coco.yaml --clips 113287 --devices 8 --tflops 120",
    "cluster": "--config configs/msrvtt.yaml --clips 6513 --told 20 --devices 32 --tflops 120",
}
MEASURED = ("results.csv", "minutes.csv", "overview.png")
SCORES = {
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "facts_precision": "facts right",
    "motion_precision": "motions right",
    "all_right": "clips without a wrong fact",
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results() -> list[str]:
    """One line a model: name, parameters, CIDEr, facts, milliseconds."""
    lines = [
        "| on the test clips | parameters | CIDEr | facts right | ms per clip |",
        "|---|---|---|---|---|",
    ]
    for row in rows(ROOT / "data" / "results.csv"):
        cells = [
            row["model"],
            f"{int(row['parameters']) / 1e6:.2f} M",
            f"{float(row['cider']):.2f}",
            f"{float(row['facts_precision']):.1%}",
            f"{float(row['ms_per_clip']):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def notebooks() -> list[str]:
    """One line a notebook: link, the question under its title, minutes."""
    minutes = {row["notebook"]: float(row["minutes"]) for row in rows(ROOT / "data" / "minutes.csv")}
    lines = ["| notebook | question it answers | minutes on 2 CPU cores |", "|---|---|---|"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        question = re.search(r"^\*\*(.+?)\*\*$", first, re.MULTILINE)[1]
        lines.append(f"| [{path.stem}](notebooks/{path.name}) | {question} | {minutes[path.stem]:.1f} |")
    return lines


def seeds() -> list[str]:
    """The gain of the table above from several seeds, as a sentence."""
    runs, name = report.load(MEASURES, "labels"), "3,000 captioned: recipe on these clips"
    parts, count = [], 0
    for score, what, factor in (
        ("test/cider", "{:+.2f} CIDEr ({:+.2f} to {:+.2f})", 1),
        ("test/motion_precision", "{:+.0f} points of motions right ({:+.0f} to {:+.0f})", 100),
    ):
        gains = [factor * value for value in report.differences(runs, score)[name]]
        parts.append(what.format(sum(gains) / len(gains), *report.interval(gains)))
        count = len(gains)
    return [
        f"Both students above are one run each. Over {count} seeds, training with the teacher gains",
        f"{' and '.join(parts)} over training without it (95 % intervals;",
        "see [experiments](experiments/README.md)).",
    ]


def scores() -> list[str]:
    """Scores of the networks that ship, on both test splits."""
    names = {"teacher": "teacher", "student": "student", "baseline": "same, without a teacher"}
    titles = {"test": "test clips", "unseen": "unseen pairs"}
    lines = [f"| 500 clips each | | {' | '.join(SCORES.values())} |", "|---|---|" + "---|" * len(SCORES)]
    for folder, name in names.items():
        measured = json.loads((ROOT / "data" / folder / "scores.json").read_text())
        for split, title in titles.items():
            cells = [f"{measured[f'{split}/{key}']:.{2 if key == 'cider' else 3}f}" for key in SCORES]
            lines.append("| " + " | ".join([name, title, *cells]) + " |")
    return lines


def experiments() -> dict[str, list[str]]:
    """The table of each experiment that has been run."""
    names = [name for name in EXPERIMENTS if (MEASURES / f"{name}.csv").is_file()]
    found = {name: report.table(MEASURES, name).splitlines() for name in names}
    for name, path, make in (
        ("real_size", MEASURES / "real_size.json", real_size.table),
        ("step", ROOT / "benchmarks" / "step.json", step.table),
    ):
        if path.is_file():
            found[name] = make(json.loads(path.read_text())).splitlines()
    return found


def plans() -> dict[str, list[str]]:
    """The command and what it says, for each run of configs/README.md."""
    found = {}
    for name, words in PLANS.items():
        run = plan.described(words.replace("configs/", f"{ROOT}/configs/").split())
        found[name] = [f"`python -m gitdistill plan {words}`", "", *plan.table(run)]
    return found


def pages() -> dict[Path, dict[str, list[str]]]:
    """The lines of each page's tables, by the name in their markers."""
    measured = json.loads((ROOT / "benchmarks" / "decoding.json").read_text())
    found = {
        ".": {"results": results(), "seeds": seeds(), "notebooks": notebooks()},
        "benchmarks": decoding.tables(measured),
        "configs": plans(),
        "data": {"scores": scores()},
        "experiments": experiments() | {"smaller": smaller.table(rows(MEASURES / "smaller.csv"))},
    }
    return {ROOT / folder / "README.md": tables for folder, tables in found.items()}


def filled(text: str, tables: dict[str, list[str]]) -> str:
    """The page's text with the lines between each pair of markers replaced."""
    for name, lines in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        body = "\n".join(lines) + "\n"
        text, found = block.subn(lambda match, body=body: match[1] + body + match[2], text)
        if found != 1:
            raise ValueError(f"the page needs one pair of markers <!-- {name} --> … <!-- end of {name} -->")
    return text


def fill(check: bool = False) -> bool:
    """Write the tables of all pages, or only check them; whether something was (or has to be) changed."""
    changed = False
    for page, tables in pages().items():
        text = page.read_text(encoding="utf-8")
        new = filled(text, tables)
        changed = changed or new != text
        if not check:
            page.write_text(new, encoding="utf-8")
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true", help="change nothing, only compare")
    which.add_argument("--keep", action="store_true", help="take nothing from runs/")
    options = parser.parse_args()
    if not options.check and not options.keep:
        missing = [name for name in MEASURED if not (ROOT / "runs" / name).is_file()]
        if missing:
            print(f"no {', '.join(missing)} in runs/: run `make run` first", file=sys.stderr)
            return 1
        for name in MEASURED:
            shutil.copy(ROOT / "runs" / name, ROOT / "data" / name)
        teacher = GenerativeImageTextTeacher.from_pretrained(ROOT / "data" / "teacher")
        student = StudentCandidateV1.from_pretrained(ROOT / "data" / "student")
        (ROOT / "data" / "architecture.png").write_bytes(
            plots.png(plots.architecture(teacher, student, True))
        )
    return int(fill(options.check) and options.check)


if __name__ == "__main__":
    sys.exit(main())
