"""Which object word captions say for which toy."""

from collections import Counter
from itertools import product

import numpy as np

from gitdistill.world.facts import parse
from gitdistill.world.lexicon import OBJECTS


def confusions(captions, scenes) -> Counter:
    """How often each toy of the scenes gets each object word: counts of (toy, word).

    A toy that is named gets its own name. The others share the object words that are left, the most alike pair first;
    None is for a toy for which no word is left.
    """
    counts = Counter()
    for caption, scene in zip(captions, scenes, strict=True):
        said = Counter(name for mention in parse(caption).mentions for name in mention.object)
        shown = Counter(toy.name for toy in scene.toys)
        counts.update((name, name) for name in (said & shown).elements())
        toys, left = sorted((shown - said).elements()), sorted((said - shown).elements())
        for toy, word in sorted(product(toys, left), key=lambda pair: likeness(*pair), reverse=True):
            if toy in toys and word in left:
                counts[toy, word] += 1
                toys.remove(toy)
                left.remove(word)
        counts.update((toy, None) for toy in toys)
    return counts


def likeness(toy: str, word: str) -> tuple[bool, bool]:
    one, other = OBJECTS[toy], OBJECTS[word]
    return one.group == other.group, one.hypernym == other.hypernym


def confusion_maps(steps: dict[int, Counter], size: int = 8) -> tuple[dict, list[str], list[str]]:
    """`confusions` at several steps as maps for `viz.explorers.training`: step -> shares, names of rows and columns.

    A row is one of the `size` toys that are most often wrong at the last step, with their number; its shares add up to
    one. The first column is its own name, then come the `size` words that these toys get most often instead at the last
    step, other words, no word.
    """
    last = steps[max(steps)]
    numbers, missed = Counter(), Counter()
    for (toy, word), count in last.items():
        numbers[toy] += count
        missed[toy] += count * (toy != word)
    rows = sorted(numbers, key=lambda toy: (-missed[toy], -numbers[toy], toy))[:size]
    said = Counter()
    for (toy, word), count in last.items():
        if toy in rows and word not in (toy, None):
            said[word] += count
    columns = ["right", *(word for word, _ in said.most_common(size)), "another", "none"]
    maps = {}
    for step, counts in steps.items():
        maps[step] = np.zeros((len(rows), len(columns)))
        for (toy, word), count in counts.items():
            if toy in rows:
                name = "right" if word == toy else word or "none"
                column = columns.index(name if name in columns else "another")
                maps[step][rows.index(toy), column] += count / numbers[toy]
    return maps, [f"{toy} ({numbers[toy]})" for toy in rows], columns
