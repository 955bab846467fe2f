"""Fill the README's tables from measured files, and keep what `make run` measured in data/.

    python tools/readme.py           after `make run`: runs/results.csv, minutes.csv and overview.png go to data/,
                                     and the README is written anew
    python tools/readme.py --check   exit code 1 if the README does not say what the files say

The scores of the embedded networks come from data/*/scores.json, which their training wrote.
"""

import argparse
import csv
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
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


def scores() -> list[str]:
    """The embedded teacher's scores on both test splits."""
    measured = json.loads((ROOT / "data" / "teacher" / "scores.json").read_text())
    lines = ["| embedded teacher, 500 clips each | test | unseen colour and object pairs |", "|---|---|---|"]
    for name, title in SCORES.items():
        shown = "{:.2f}" if name == "cider" else "{:.3f}"
        cells = [shown.format(measured[f"{split}/{name}"]) for split in ("test", "unseen")]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return lines


def blocks() -> dict[str, list[str]]:
    """The lines of each table, by the name in its markers."""
    return {"results": results(), "notebooks": notebooks(), "scores": scores()}


def filled(text: str, tables: dict[str, list[str]]) -> str:
    """The README's text with the lines between each pair of markers made anew."""
    for name, lines in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        body = "\n".join(lines) + "\n"
        text, found = block.subn(lambda match, body=body: match[1] + body + match[2], text)
        if found != 1:
            raise ValueError(f"README.md needs one pair of markers <!-- {name} --> … <!-- end of {name} -->")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    check = parser.parse_args().check
    if not check:
        missing = [name for name in MEASURED if not (ROOT / "runs" / name).is_file()]
        if missing:
            print(f"no {', '.join(missing)} in runs/: run `make run` first", file=sys.stderr)
            return 1
        for name in MEASURED:
            shutil.copy(ROOT / "runs" / name, ROOT / "data" / name)
    text = README.read_text(encoding="utf-8")
    if check:
        return int(filled(text, blocks()) != text)
    README.write_text(filled(text, blocks()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
