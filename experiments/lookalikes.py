"""What the networks find similar: how much of the probability that they give to wrong objects goes to look-alikes.

    python experiments/lookalikes.py              writes data/experiments/lookalikes.csv and the README's table
    python experiments/lookalikes.py --clips 50 --out runs/lookalikes      fewer clips; the README stays as it is

At each word of a true caption that names an object, the probability of the next word is summed by the object that the
words name. An object is wrong if it is not in the clip. The share of the wrong objects' probability that goes to the
group of the right one (a ram and a goat; tiger, leopard and cat) is averaged over words, with a bootstrap interval over
clips. Chance is that share for a network that finds all wrong objects equally likely.
"""

import sys
from collections import defaultdict

import torch
from report import write_rows
from shipped import arguments, networks, test_clips

from gitdistill.inspection import bootstrap
from gitdistill.world.lexicon import OBJECTS


def nouns(tokenizer) -> dict[str, list[int]]:
    """Object -> ids of the words that name it and no other object; names of several words are left out."""
    owners = defaultdict(set)
    for name, kind in OBJECTS.items():
        for word in kind.names:
            owners[word].add(name)
    found = {name: [] for name in OBJECTS}
    for word, names in owners.items():
        if len(names) == 1 and " " not in word:
            found[names.pop()].append(tokenizer.convert_tokens_to_ids(word))
    return {name: ids for name, ids in found.items() if ids}


@torch.no_grad()
def shares(network, tokenizer, clips: list) -> list[dict]:
    """A row for each word that names an object which has look-alikes: its clip, "wrong", the probability of wrong
    objects, "alike", the share of it on look-alikes, and "chance"."""
    words, rows = nouns(tokenizer), []
    object_of = {word: name for name, ids in words.items() for word in ids}
    for number, clip in enumerate(clips):
        tokens = torch.tensor([tokenizer(clip.captions[0])["input_ids"]])
        probabilities = network(clip.frames[None], tokens).logits[0].softmax(-1)
        there = {toy.name for toy in clip.scene.toys}
        for place, word in enumerate(tokens[0, 1:].tolist()):
            name = object_of.get(word)
            mass = {o: float(probabilities[place, ids].sum()) for o, ids in words.items() if o not in there}
            twins = [o for o in mass if name and OBJECTS[o].group == OBJECTS[name].group]
            if name in there and twins:
                wrong = sum(mass.values())
                alike = sum(mass[o] for o in twins) / wrong
                rows.append(
                    {"clip": number, "wrong": wrong, "alike": alike, "chance": len(twins) / len(mass)}
                )
    return rows


def run(networks: dict, tokenizer, clips: list) -> list[dict]:
    """A row for each network: the means of `shares`, that of "alike" with its interval."""
    found = []
    for name, network in networks.items():
        rows = shares(network, tokenizer, clips)
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("wrong", "alike", "chance")}
        _, low, high = bootstrap([row["alike"] for row in rows], [row["clip"] for row in rows])
        found.append({"network": name, "words": len(rows), **mean, "low": low, "high": high})
    return found


def table(rows: list[dict]) -> list[str]:
    """The README's table."""
    lines = ["| | probability of wrong objects | of that, on look-alikes | chance |", "|---|---|---|---|"]
    for row in rows:
        wrong, alike, low, high, chance = (float(row[k]) for k in ("wrong", "alike", "low", "high", "chance"))
        lines.append(
            f"| {row['network']} | {wrong:.1%} | {alike:.0%} ({low:.0%} to {high:.0%}) | {chance:.0%} |"
        )
    return lines


def main() -> int:
    options = arguments(__doc__, clips=500).parse_args()
    rows = run(*networks(), test_clips(options.clips))
    write_rows(options.out / "lookalikes.csv", rows)
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
