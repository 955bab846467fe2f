"""What a word depends on: attention to the named thing is cut, or to other cells, and heads are silenced.

    python experiments/causal.py             writes causal.csv, heads.csv, deletions.csv and two pictures
    python experiments/causal.py --clips 20 --out runs/causal      fewer clips, another folder than data/experiments

A word names a thing by its kind (object), colour or motion. Each cut is made for all words of a true caption of a test
clip, and the effect is how much the log-probability of the right word falls. As a control all is done again with a
network whose weights are shuffled. Then, for each explanation of a word, the places that it ranks highest are cut: the
better it tells what the word depends on, the more is lost (the deletion score of Petsiuk et al. 2018,
https://arxiv.org/abs/1806.07421, on attention instead of pixels). Intervals are 95 % bootstrap intervals over clips.
"""

import sys
from collections import defaultdict

import torch
from report import write_pictures, write_rows
from shipped import arguments, first_clips, networks

from gitdistill.inspection import (
    Cut,
    attention_maps,
    bootstrap,
    cell_effects,
    explain,
    head_effects,
    mask_on_grid,
    referents,
    shuffled,
    with_cuts,
)
from gitdistill.viz import plots
from gitdistill.world.lexicon import PHRASES

KINDS = ("object", "colour", "motion")
TOP = 0.2  # share of the places that is cut
CUTS = ("the named thing", "another thing", "as many other cells")


def named(words: list[str], scene) -> dict[int, tuple[str, int]]:
    """Place of a word -> (kind, index of the thing that it is about); a motion is about the thing named before."""
    found, last = {}, None
    for place, (word, row) in enumerate(zip(words, referents(words, scene))):
        meaning = PHRASES.get((word,))
        if row:
            found[place], last = row, row[1]
        elif meaning and meaning.kind == "motion" and last is not None:
            found[place] = "motion", last
    return found


def cuts_of(clip, grid: tuple[int, int], generator) -> dict[tuple[str, int], torch.Tensor]:
    """(cut, thing) -> the cells [F, h, w] that are cut; what is not possible in a clip is left out."""
    found, things = {}, torch.stack([mask_on_grid(mask, grid) for mask in clip.masks])
    free = (~things.any(0)).flatten().nonzero().flatten()
    for k, cells in enumerate(things):
        found[CUTS[0], k] = cells
        others = things[torch.arange(len(things)) != k].any(0) & ~cells
        if others.any():
            found[CUTS[1], k] = others
        some = free[torch.randperm(len(free), generator=generator)[: int(cells.sum())]]
        found[CUTS[2], k] = torch.zeros_like(cells).flatten().index_fill(0, some, True).view_as(cells)
    return found


def effects(network, tokenizer, clip, number: int, generator) -> tuple[list[dict], dict[str, list]]:
    """Rows of the cuts, and by kind of word the effects [L, H] of heads."""
    tokens = torch.tensor(tokenizer(clip.captions[0])["input_ids"])
    about = named(tokenizer.convert_ids_to_tokens(tokens[1:]), clip.scene)
    cuts = cuts_of(clip, tuple(attention_maps(network, clip.frames, tokens).maps.shape[-2:]), generator)
    found = with_cuts(
        network, clip.frames, tokens, [Cut(heads=()), *(Cut(cells=cells) for cells in cuts.values())]
    )
    silent, rows, heads = head_effects(network, clip.frames, tokens), [], defaultdict(list)
    for place, (kind, k) in about.items():
        heads[kind].append(silent[..., place])
        drops = {
            cut: found[0, place] - found[row, place] for row, (cut, j) in enumerate(cuts, start=1) if j == k
        }
        rows += [
            {"clip": number, "kind": kind, "cut": cut, "effect": float(drop)} for cut, drop in drops.items()
        ]
    return rows, heads


def deletions(network, tokenizer, clip, number: int, generator) -> list[dict]:
    """A row for each word and explanation: the effect of cutting the places that the explanation ranks highest."""
    tokens = torch.tensor(tokenizer(clip.captions[0])["input_ids"])
    about = named(tokenizer.convert_ids_to_tokens(tokens[1:]), clip.scene)
    maps = explain(network, clip.frames, tokens)
    grid = tuple(maps["raw attention"].shape[-2:])
    maps["cutting each place"] = cell_effects(network, clip.frames, tokens, grid)
    maps["chance"] = torch.rand(maps["raw attention"].shape, generator=generator)
    rows = []
    for place in about:
        cuts = [Cut(heads=())]
        for values in maps.values():
            top = values[place].flatten().topk(round(TOP * grid[0] * grid[1])).indices
            cells = torch.zeros(grid[0] * grid[1], dtype=torch.bool).index_fill(0, top.cpu(), True)
            cuts.append(Cut(cells=cells.view(grid).expand(len(clip.frames), *grid)))
        found = with_cuts(network, clip.frames, tokens, cuts)[:, place]
        drops = (found[0] - found[1:]).tolist()
        rows += [{"clip": number, "explanation": name, "effect": drop} for name, drop in zip(maps, drops)]
    return rows


def averaged(rows: list[dict], key: tuple[str, ...]) -> list[dict]:
    """The mean effect of each group of rows with its interval over clips, and the number of words."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in key)].append(row)
    found = []
    for names, group in groups.items():
        mean, low, high = bootstrap([row["effect"] for row in group], [row["clip"] for row in group])
        found.append({**dict(zip(key, names)), "effect": mean, "low": low, "high": high, "words": len(group)})
    return found


def run(networks: dict, tokenizer, clips: list, explained: int) -> tuple[list[dict], list[dict], list[dict]]:
    """The rows of causal.csv, heads.csv and deletions.csv; the last for the first `explained` clips."""
    cuts, heads, deleted = [], [], []
    for name, network in networks.items():
        generator, rows, silent, further = torch.Generator().manual_seed(0), [], defaultdict(list), []
        for number, clip in enumerate(clips):
            new, by_kind = effects(network, tokenizer, clip, number, generator)
            rows += new
            for kind, values in by_kind.items():
                silent[kind] += values
            if number < explained:
                further += deletions(network, tokenizer, clip, number, generator)
        cuts += [{"network": name, **row} for row in averaged(rows, ("kind", "cut"))]
        deleted += [{"network": name, **row} for row in averaged(further, ("explanation",))]
        for kind in KINDS:
            for layer, values in enumerate(torch.stack(silent[kind]).mean(0).tolist()):
                for head, value in enumerate(values):
                    heads.append(
                        {"network": name, "kind": kind, "layer": layer, "head": head, "effect": value}
                    )
    return cuts, heads, deleted


def with_ends(row: dict) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*(float(row[key]) for key in ("effect", "low", "high")))


def table(rows: list[dict], columns: str = "cut", lines: tuple[str, ...] = ("network", "kind")) -> list[str]:
    """A table of the README: mean effects in nats."""
    titles = list(dict.fromkeys(row[columns] for row in rows))
    cells = {(*(row[name] for name in lines), row[columns]): with_ends(row) for row in rows}
    found = [
        "| " + " | | " * (len(lines) - 1) + f" | {' | '.join(titles)} |",
        "|---" * (len(lines) + len(titles)) + "|",
    ]
    for key in dict.fromkeys(tuple(row[name] for name in lines) for row in rows):
        found.append(
            f"| {' | '.join(key)} | {' | '.join(cells.get((*key, title), '') for title in titles)} |"
        )
    return found


def head_map(heads: list[dict], network: str):
    """A picture: for each kind of word, layers in rows and heads in columns."""
    maps = {}
    for kind in KINDS:
        rows = [row for row in heads if (row["network"], row["kind"]) == (network, kind)]
        maps[kind] = torch.zeros(*(1 + max(row[name] for row in rows) for name in ("layer", "head")))
        for row in rows:
            maps[kind][row["layer"], row["head"]] = row["effect"]
    layers, count = maps["motion"].shape
    layer, head = divmod(int(maps["motion"].argmax()), count)
    others = ", ".join(
        f"of {kind} {float(maps[kind][layer, head]):.2f}" for kind in KINDS if kind != "motion"
    )
    title = f"{network.capitalize()}: without head {head} of layer {layer}, words of motion lose "
    title += f"{float(maps['motion'].max()):.2f} nats, those {others}"
    rows, columns = (
        [f"{name} {k}" for k in range(size)] for name, size in (("layer", layers), ("head", count))
    )
    return plots.effects(maps, rows, columns, title=title)


def main() -> int:
    parser = arguments(__doc__, clips=200)
    parser.add_argument(
        "--explained", type=int, default=60, help="of these, for the comparison with explanations"
    )
    options = parser.parse_args()
    found, tokenizer = networks()
    found["teacher, shuffled weights"] = shuffled(found["teacher"])
    clips = first_clips(options.clips, masks=True)
    tables = dict(zip(("causal", "heads", "deletions"), run(found, tokenizer, clips, options.explained)))
    for name, rows in tables.items():
        write_rows(options.out / f"{name}.csv", rows)
    shown = {"heads_teacher.png": "teacher", "heads_student.png": "distilled student"}
    figures = {file: head_map(tables["heads"], name) for file, name in shown.items()}
    write_pictures(options.out, figures)
    print("\n".join([*table(tables["causal"]), "", *table(tables["deletions"], "explanation", ("network",))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
