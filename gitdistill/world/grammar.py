"""The grammar of the toybox: captions as people might write them, from a scene.

`describe` varies synonyms, hypernyms, order and detail, and says only what is true; `canonical` leaves nothing out.
Random numbers come from `rng.random_sample()` alone, so that a `numpy.random.RandomState` gives the same captions
on any machine."""

from gitdistill.world.lexicon import HYPERNYMS, MOTIONS, OBJECTS, OPPOSITE, RELATIONS, SIZES, WITH

TRANSLATIONS = ("left", "right", "up", "down")  # "moves left to the left of" is no English


def pick(rng, row):
    """One entry of `row`, all equally likely."""
    return row[int(rng.random_sample() * len(row))]


def usual(rng, row, share: float = 0.7):
    """The first entry of `row` with probability `share`, else any of the others."""
    if len(row) == 1 or rng.random_sample() < share:
        return row[0]
    return pick(rng, row[1:])


def article(text: str) -> str:
    """ "a cat", "an owl"."""
    return ("an " if text[0] in "aeiou" else "a ") + text


def has_size(toy) -> bool:
    """Whether a caption may state the toy's size: small or large, neither growing nor shrinking."""
    return bool(SIZES[toy.size]) and toy.motion not in ("grow", "shrink")


def relation_from(scene, i: int, j: int) -> str | None:
    """Where toy i is, seen from toy j, if that is clear."""
    for first, relation, second in scene.relations:
        if (first, second) == (i, j):
            return relation
        if (first, second) == (j, i):
            return OPPOSITE[relation]
    return None


def twins(scene) -> bool:
    """Whether the scene shows two of a kind, and nothing else."""
    return len(scene.toys) == 2 and scene.toys[0].name == scene.toys[1].name


def canonical(scene) -> str:
    """The plain caption that names every toy with its colour, its motion, and where two toys at rest are; without
    sizes."""
    order = [k for k in range(len(scene.toys)) if scene.toys[k].motion != "still"]
    order += [k for k in range(len(scene.toys)) if k not in order]
    toys = [scene.toys[k] for k in order]
    nouns = [article(" ".join(filter(None, (toy.colour, toy.name)))) for toy in toys]
    verbs = [MOTIONS[toy.motion][0].singular for toy in toys]
    if len(toys) == 1:
        return f"{nouns[0]} {verbs[0]}" if scene.moving else nouns[0]
    if twins(scene) and toys[0].colour == toys[1].colour and verbs[0] == verbs[1]:
        noun = " ".join(filter(None, ("two", toys[0].colour, OBJECTS[toys[0].name].plural)))
        return f"{noun} {MOTIONS[toys[0].motion][0].plural}" if toys[0].motion != "still" else noun
    relation = relation_from(scene, *order[:2]) if toys[0].motion not in TRANSLATIONS else None
    if toys[1].motion != "still":
        return f"{nouns[0]} {verbs[0]} and {nouns[1]} {verbs[1]}"
    moves = [verbs[0]] if toys[0].motion != "still" else []
    where = f"{RELATIONS[relation][0]} {nouns[1]}" if relation else ("with " if moves else "and ") + nouns[1]
    return " ".join([nouns[0], *moves, where, *(["and", nouns[2]] if len(nouns) == 3 else [])])


def describe(scene, rng) -> str:
    """A caption as a person might write it; what it says is always true, the plainest wording is the likeliest."""
    toys = scene.toys
    if len(toys) == 1:
        return one(toys[0], scene.moving, rng)
    if twins(scene) and rng.random_sample() < 0.8:
        return two_of_a_kind(scene, rng)
    order = list(range(len(toys)))
    if rng.random_sample() < 0.5:
        order = order[::-1]
    if rng.random_sample() < 0.8:  # what moves comes first
        order.sort(key=lambda k: toys[k].motion == "still")
    return two(scene, order, rng) if len(toys) == 2 else three(scene, order, rng)


def noun(toy, rng) -> str:
    """ "a small cat", "an orange gift"."""
    name = usual(rng, OBJECTS[toy.name].names, 0.75)
    if rng.random_sample() < 0.08:
        name = OBJECTS[toy.name].hypernym
    return article(" ".join(filter(None, (*details(toy, rng), name))))


def details(toy, rng) -> tuple[str, str]:
    """Size and colour of a toy, or "" where they are left out."""
    colour = toy.colour if toy.colour and rng.random_sample() < 0.85 else ""
    said = has_size(toy) and rng.random_sample() < 0.35
    return pick(rng, SIZES[toy.size]) if said else "", colour


def verb(toy, rng, form: str = "singular") -> str:
    return getattr(usual(rng, MOTIONS[toy.motion]), form)


def one(toy, moving: bool, rng) -> str:
    name, choice = noun(toy, rng), rng.random_sample()
    if not moving:
        return name if choice < 0.6 else f"there is {name}" if choice < 0.8 else f"a picture of {name}"
    if choice < 0.10:
        return name if choice < 0.06 else f"there is {name}"
    if choice < 0.70:
        return f"{name} {verb(toy, rng)}"
    motion = verb(toy, rng, "participle")
    if choice < 0.80:
        return f"there is {name} {motion}"
    return f"{name} {motion}" if choice < 0.90 else f"{name} is {motion}"


def two_of_a_kind(scene, rng) -> str:
    first, second = scene.toys
    same = first.motion == second.motion
    alike = first._replace(
        colour=first.colour if first.colour == second.colour else None,
        size=first.size if has_size(second) and first.size == second.size else "medium",
    )
    kind = OBJECTS[first.name]
    plural = HYPERNYMS[kind.hypernym] if rng.random_sample() < 0.08 else kind.plural
    both = " ".join(filter(None, ("two", *details(alike, rng), plural)))
    choice = rng.random_sample()
    if not scene.moving or (same and first.motion == "still"):
        return both if choice < 0.7 else f"there are {both}"
    if not same:
        if choice < 0.1:
            return both
        return f"{noun(first, rng)} {verb(first, rng)} and {another(second, rng)} {verb(second, rng)}"
    if choice < 0.7:
        return f"{both} {verb(first, rng, 'plural')}"
    motion = verb(first, rng, "participle")
    return f"{both} are {motion}" if choice < 0.85 else f"there are {both} {motion}"


def another(toy, rng) -> str:
    return " ".join(filter(None, ("another", *details(toy, rng), toy.name)))


def two(scene, order: list[int], rng) -> str:
    toys = [scene.toys[k] for k in order]
    first, second = (noun(toy, rng) for toy in toys)
    relation = relation_from(scene, *order)
    choice = rng.random_sample()
    if all(toy.motion == "still" for toy in toys):
        return arrangement(first, second, relation, scene.moving, rng)
    if choice < 0.04:
        return f"{first} and {second}" if choice < 0.02 else f"there is {first} and {second}"
    if toys[1].motion == "still":
        if relation and choice < 0.40 and toys[0].motion not in TRANSLATIONS:
            return f"{first} {verb(toys[0], rng)} {usual(rng, RELATIONS[relation])} {second}"
        if choice < 0.65:
            return f"{first} {verb(toys[0], rng)} with {second}"
    if toys[0].motion == toys[1].motion and choice < 0.5:
        return f"{first} and {second} {verb(toys[0], rng, 'plural')}"
    motions = [verb(toy, rng, "participle" if choice > 0.9 else "singular") for toy in toys]
    if choice > 0.9:
        start = "there is " if choice > 0.95 else ""
        return f"{start}{first} {motions[0]} and {second} {motions[1]}"
    link = "and" if choice < 0.76 else "while" if choice < 0.83 else "as"
    return f"{first} {motions[0]} {link} {second} {motions[1]}"


def arrangement(first: str, second: str, relation: str | None, moving: bool, rng) -> str:
    """Two toys at rest: where one is, seen from the other."""
    choice = rng.random_sample()
    if relation is None or choice < 0.06:
        return f"{first} and {second}" if choice < 0.7 else f"there is {first} and {second}"
    phrase = usual(rng, RELATIONS[relation])
    if choice < 0.66:
        return f"{first} {phrase} {second}"
    if choice < 0.78:
        return f"{first} is {phrase} {second}"
    if choice < 0.90:
        return f"there is {first} {phrase} {second}"
    return f"{second} with {first} {WITH[relation]}"


def three(scene, order: list[int], rng) -> str:
    toys = [scene.toys[k] for k in order]
    nouns = [noun(toy, rng) for toy in toys]
    choice = rng.random_sample()
    if toys[0].motion != "still":
        relation = relation_from(scene, *order[:2])
        if relation and choice < 0.35 and toys[0].motion not in TRANSLATIONS:
            return f"{nouns[0]} {verb(toys[0], rng)} {RELATIONS[relation][0]} {nouns[1]} and {nouns[2]}"
        return f"{nouns[0]} {verb(toys[0], rng)} with {nouns[1]} and {nouns[2]}"
    resting = [k for k in order if scene.toys[k].motion == "still"]
    clear = [(i, j) for i in resting for j in resting if i != j and relation_from(scene, i, j)]
    if clear and choice < 0.75:
        i, j = pick(rng, clear)
        names, last = dict(zip(order, nouns, strict=True)), ({0, 1, 2} - {i, j}).pop()
        where = f"{names[i]} is {RELATIONS[relation_from(scene, i, j)][0]} {names[j]}"
        mover = scene.toys[last]
        if mover.motion != "still":
            return f"{where} while {names[last]} {verb(mover, rng)}"
        return f"there is {names[last]} and {where}" if choice < 0.3 else f"{where} with {names[last]}"
    if len(resting) < 3:
        mover = next(k for k in range(3) if toys[k].motion != "still")
        others = [nouns[k] for k in range(3) if k != mover]
        return f"{others[0]} and {others[1]} with {nouns[mover]} {verb(toys[mover], rng, 'participle')}"
    return f"{nouns[0]} with {nouns[1]} and {nouns[2]}"
