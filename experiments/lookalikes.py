"""What the networks find similar: how much of the probability that they give to wrong objects goes to look-alikes.

    python experiments/lookalikes.py              writes data/experiments/lookalikes.csv and the README's table
    python experiments/lookalikes.py --clips 50 --out runs/lookalikes      fewer clips; the README stays as it is

At each word of a true caption that names an object, the probability of the next word is summed by the object that the
words name. An object is wrong if it is not in the clip. The share of the wrong objects' probability that goes to the
group of the right one (a ram and a goat; tiger, leopard and cat) is averaged over words, with a bootstrap interval over
clips. Chance is that share for a network that finds all wrong objects equally likely. Notebook 03 draws a map
of the objects from their `wrong_shares`.
"""

import sys
from collections import defaultdict

import torch
from report import write_rows
from shipped import arguments, first_clips, networks
from torch.nn import functional as F

from gitdistill.decoding.loop import evaluation
from gitdistill.inspection import bootstrap, rank_correlation
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


def wrong_shares(network, tokenizer, clips: list) -> tuple[torch.Tensor, list[int], list[str]]:
    """What a network would say in place of the right word, from clips that show one toy each.

    The network reads "a" and gives the next word, so that only the clip tells which: after "a red", toys that are
    never red are unlikely, whatever they look like. Words that follow "an" are left out, with toys of no other name.

    Returns the log of each object's share of the probability of all wrong ones [n, K], NaN for the right one, and a
    millionth at least; the right one's place [n]; and the K objects, all that the clips show.
    """
    toys = [clip.scene.toys[0].name for clip in clips]
    words, after_a = {}, lambda k: tokenizer.convert_ids_to_tokens(k)[0] not in "aeiou"
    for name, ids in nouns(tokenizer).items():
        if name in toys and (ids := list(filter(after_a, ids))):
            words[name] = ids
    frames = torch.stack([clip.frames for clip, name in zip(clips, toys) if name in words])
    start = torch.tensor([tokenizer("a")["input_ids"][:-1]])
    with evaluation(network):
        logits = [network(some, start.expand(len(some), -1)).logits[:, -1] for some in frames.split(50)]
    found = torch.cat(logits).softmax(-1)
    table = torch.stack([found[:, ids].sum(-1) for ids in words.values()], 1)
    right = [list(words).index(name) for name in toys if name in words]
    table[range(len(right)), right] = float("nan")
    return (table / table.nansum(1, keepdim=True)).clamp(min=1e-6).log(), right, list(words)


def similarities(table, right) -> torch.Tensor:
    """How alike a network finds two objects [K, K], from its `wrong_shares`: the mean log share of each where the other
    is right, both ways, beyond what it gets wherever it is wrong; NaN where no clip tells.
    """
    table = torch.as_tensor(table).double()
    one_hot = F.one_hot(torch.as_tensor(right).long(), table.shape[1]).double()
    means = one_hot.T @ table.nan_to_num() / (one_hot.T @ table.isfinite().double())
    means = means - means.nanmean(0)
    return torch.stack([means, means.T]).nanmean(0)


def agreement(first, second, right) -> float:
    """Rank correlation of two networks' `similarities` over all pairs of objects; both tables are of the same clips.

    Representational similarity analysis: Kriegeskorte et al. 2008, https://doi.org/10.3389/neuro.06.004.2008
    """
    one, other = (similarities(table, right) for table in (first, second))
    known = (one.isfinite() & other.isfinite()).triu(1)
    return rank_correlation(one[known], other[known])


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
    rows = run(*networks(), first_clips(options.clips))
    write_rows(options.out / "lookalikes.csv", rows)
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
