"""Fill the tables of the README files from measured files; keep what `make run` measured in data/.

    python tools/readme.py           after `make run`: copies its two tables and two pictures from runs/ to data/,
                                     draws the picture of both networks and fills all tables
    python tools/readme.py --keep    only fills the tables, from what is in data/
    python tools/readme.py --check   changes nothing; exit code 1 if a table differs from its file

A table lies between <!-- name --> and <!-- end of name --> in README.md or in a folder's README.md. Scores of the
embedded networks come from data/*/scores.json, which their training wrote; results of experiments and benchmarks from
data/experiments and benchmarks/*.json; estimates of training runs from `gitdistill.use.plan`.
"""

import argparse
import csv
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "benchmarks")]  # scripts, in no package
import calibration  # noqa: E402
import causal  # noqa: E402
import decoding  # noqa: E402
import formats  # noqa: E402
import lookalikes  # noqa: E402
import memory  # noqa: E402
import real_size  # noqa: E402
import report  # noqa: E402
import scale  # noqa: E402
import smaller  # noqa: E402
import step  # noqa: E402

from gitdistill import GenerativeImageTextTeacher, StudentCandidateV1  # noqa: E402
from gitdistill.use import plan  # noqa: E402
from gitdistill.viz import plots  # noqa: E402

EXPERIMENTS = ("labels", "losses", "own_captions", "controls", "sizes")
MEASURES = ROOT / "data" / "experiments"
PLANS = {"laptop": "student", "gpu": "coco", "cluster": "msrvtt"}  # table -> configuration
MEASURED = ("results.csv", "minutes.csv", "overview.png", "story.png")
SCORES = {
    "cider": "CIDEr",
    "facts_precision": "facts right",
    "motion_precision": "motions right",
    "all_right": "clips without a wrong fact",
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results() -> list[str]:
    """One line a model: name, parameters, CIDEr, facts, motions, milliseconds."""
    lines = [
        "| on the test clips | parameters | CIDEr | facts right | motions right | ms per clip |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows(ROOT / "data" / "results.csv"):
        cells = [
            row["model"],
            f"{int(row['parameters']) / 1e6:.2f} M",
            f"{float(row['cider']):.2f}",
            f"{float(row['facts_precision']):.1%}",
            f"{float(row['motion_precision']):.1%}",
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
    """How many captions a teacher replaces, from several seeds, as sentences."""
    runs = report.load(MEASURES, "labels")
    gains = report.differences(runs)["300 captioned: teacher"]
    return [
        f"**{report.headline(runs)}.**",
        f"Over {len(gains)} seeds of a longer training on 5,000 clips, the teacher adds {report.points(gains)}",
        "percentage points of right facts (95 % interval) to what a student learns from the 300 captions alone, though",
        "the latter has up to three times as many steps; see [experiments](experiments/README.md).",
    ]


def scores() -> list[str]:
    """Scores of the networks that ship, on the test splits."""
    names = {"teacher": "teacher", "student": "student", "baseline": "same, without a teacher"}
    titles = {"test": "test clips", "unseen": "unseen pairs", "lookalike": "look-alikes"}
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
        ("formats", ROOT / "benchmarks" / "formats.json", lambda found: "\n".join(formats.table(found))),
        ("step", ROOT / "benchmarks" / "step.json", step.table),
        ("scale", ROOT / "benchmarks" / "scale.json", lambda found: "\n".join(scale.table(found))),
        ("memory", ROOT / "benchmarks" / "memory.json", lambda rows: "\n".join(memory.table(rows))),
    ):
        if path.is_file():
            found[name] = make(json.loads(path.read_text())).splitlines()
    return found


def plans() -> dict[str, list[str]]:
    """What a training step of these configurations takes."""
    return {name: plan.table(["--config", f"{ROOT}/configs/{file}.yaml"]) for name, file in PLANS.items()}


def all_tables() -> dict[str, list[str]]:
    """The lines of each table, by the name in its markers."""
    tables = {"results": results(), "seeds": seeds(), "notebooks": notebooks(), "scores": scores()}
    tables |= decoding.tables(json.loads((ROOT / "benchmarks" / "decoding.json").read_text()))
    tables |= experiments() | plans()
    if (MEASURES / "causal.csv").is_file():
        tables["causal"] = causal.table(rows(MEASURES / "causal.csv"))
        tables["deletions"] = causal.table(rows(MEASURES / "deletions.csv"), "explanation", ("network",))
    for name, script in {"smaller": smaller, "lookalikes": lookalikes, "calibration": calibration}.items():
        if (MEASURES / f"{name}.csv").is_file():
            tables[name] = script.table(rows(MEASURES / f"{name}.csv"))
    return tables


def filled(text: str, tables: dict[str, list[str]]) -> str:
    """A page's text with the lines between each table's markers replaced. ValueError unless it has them once."""
    for name, lines in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        body = "\n".join(lines) + "\n"
        text, found = block.subn(lambda match, body=body: match[1] + body + match[2], text)
        if found != 1:
            raise ValueError(f"the page needs one pair of markers <!-- {name} --> … <!-- end of {name} -->")
    return text


def fill(check: bool = False) -> bool:
    """Fill the tables wherever their markers are, or with `check` only compare; returns whether one differed."""
    tables, changed = all_tables(), False
    for page in [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]:
        text = page.read_text(encoding="utf-8")
        names = re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE)
        new = filled(text, {name: tables.pop(name) for name in names if name in tables})
        changed = changed or new != text
        if not check:
            page.write_text(new, encoding="utf-8")
    if tables:
        raise ValueError(f"no page has markers for {', '.join(tables)}")
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
