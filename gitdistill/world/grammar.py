"""The words of the embedded world: a lexicon and a small grammar that writes captions.

Everything that can be said about a clip is listed here once: symbols and their names, colours, sizes, motions
and relations. `describe` writes a caption as a person might, `canonical` the caption that leaves nothing out;
`gitdistill.world.facts` reads captions and checks them.

A scene is anything with the `things`, `relation`, `order` and `moving` of `gitdistill.world.scenes.Scene`. Random
numbers come from `rng.random_sample()` alone, so that a `numpy.random.RandomState` gives the same captions on any
machine."""

from dataclasses import dataclass

KINDS = ("object", "colour", "size", "motion", "relation")


@dataclass(frozen=True)
class Symbol:
    """One drawable thing: its character in DejaVu Sans, its names (the usual one first), whether its name is a
    plural counted in pairs, and whether a turn by 45 degrees visibly changes its picture (only then may it spin)."""

    char: str
    names: tuple
    pair: bool = False
    spins: bool = True


@dataclass(frozen=True)
class Motion:
    """One way to move: finite verb phrases ("a cat ...") and participles ("there is a cat ..."), plainest first."""

    verbs: tuple
    participles: tuple


SYMBOLS = {
    "star": Symbol("\u2605", ("star",), spins=False),
    "heart": Symbol("\u2665", ("heart",), spins=False),
    "moon": Symbol("\u263e", ("moon", "crescent")),
    "cloud": Symbol("\u2601", ("cloud",)),
    "umbrella": Symbol("\u2602", ("umbrella", "parasol")),
    "sun": Symbol("\u2600", ("sun",), spins=False),
    "phone": Symbol("\u260e", ("phone", "telephone"), spins=False),
    "cup": Symbol("\u2615", ("cup", "mug")),
    "clover": Symbol("\u2618", ("clover", "shamrock"), spins=False),
    "skull": Symbol("\u2620", ("skull",)),
    "wheel": Symbol("\u2638", ("wheel",), spins=False),
    "face": Symbol("\u263b", ("face", "smiley"), spins=False),
    "crown": Symbol("\u265b", ("crown",)),
    "castle": Symbol("\u265c", ("castle", "tower")),
    "horse": Symbol("\u265e", ("horse", "knight"), spins=False),
    "note": Symbol("\u266b", ("note",)),
    "die": Symbol("\u2684", ("die", "dice")),
    "flag": Symbol("\u2691", ("flag",), spins=False),
    "anchor": Symbol("\u2693", ("anchor",)),
    "swords": Symbol("\u2694", ("swords",), pair=True),
    "gear": Symbol("\u2699", ("gear", "cog"), spins=False),
    "scissors": Symbol("\u2702", ("scissors",), pair=True),
    "plane": Symbol("\u2708", ("plane", "airplane")),
    "envelope": Symbol("\u2709", ("envelope", "letter")),
    "pencil": Symbol("\u270e", ("pencil",)),
    "flower": Symbol("\u273f", ("flower", "blossom"), spins=False),
    "snowflake": Symbol("\u2744", ("snowflake",), spins=False),
    "arrow": Symbol("\u2794", ("arrow",)),
    "cat": Symbol("\U0001f431", ("cat", "kitten")),
    "monkey": Symbol("\U0001f435", ("monkey", "ape"), spins=False),
    "house": Symbol("\u2302", ("house",)),
    "hand": Symbol("\u261b", ("hand",)),
}

# Colour-blind-safe hues after Okabe and Ito (https://jfly.uni-koeln.de/color/), brightened for dark backgrounds.
COLOURS = {
    "white": (245, 245, 245),
    "yellow": (245, 230, 50),
    "orange": (240, 145, 0),
    "red": (220, 50, 20),
    "pink": (240, 130, 205),
    "green": (0, 170, 100),
    "blue": (35, 100, 240),
    "cyan": (85, 210, 245),
}

# A size without words is in no caption.
SIZES = {"small": ("small", "little", "tiny"), "medium": (), "large": ("big", "large")}

MOTIONS = {
    "still": Motion(("stays still", "rests", "does not move"), ("staying still", "resting", "not moving")),
    "left": Motion(
        ("moves left", "slides left", "drifts to the left"),
        ("moving left", "sliding left", "drifting to the left"),
    ),
    "right": Motion(
        ("moves right", "slides right", "drifts to the right"),
        ("moving right", "sliding right", "drifting to the right"),
    ),
    "up": Motion(("moves up", "rises", "drifts upward"), ("moving up", "rising", "drifting upward")),
    "down": Motion(
        ("moves down", "sinks", "drifts downward"), ("moving down", "sinking", "drifting downward")
    ),
    "grow": Motion(("grows", "gets bigger"), ("growing", "getting bigger")),
    "shrink": Motion(("shrinks", "gets smaller"), ("shrinking", "getting smaller")),
    "spin": Motion(("spins", "turns around"), ("spinning", "turning around")),
}

RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
# "a flower with a cat on its left": the phrase after the second noun says where that second thing is.
WITH = {"left": "on its left", "right": "on its right", "above": "above it", "below": "below it"}
TRANSLATIONS = ("left", "right", "up", "down")

# Words of the sentence frames below that stand in no table.
FRAME_WORDS = ("a", "an", "and", "as", "is", "of", "pair", "picture", "there", "while", "with")


def _phrases():
    table = {colour: ("colour", colour) for colour in COLOURS}
    for key, symbol in SYMBOLS.items():
        table |= dict.fromkeys(symbol.names, ("object", key))
    for key, row in SIZES.items():
        table |= dict.fromkeys(row, ("size", key))
    for key, motion in MOTIONS.items():
        table |= dict.fromkeys(motion.verbs + motion.participles, ("motion", key))
    for key, row in RELATIONS.items():
        table |= dict.fromkeys(row, ("relation", key)) | {WITH[key]: ("with", key)}
    return {tuple(phrase.split()): meaning for phrase, meaning in table.items()}


PHRASES = _phrases()  # all that mean something, split into words -> (kind, table key)


def words():
    """All words a caption can contain, sorted."""
    return sorted({*FRAME_WORDS, *(word for phrase in PHRASES for word in phrase)})


def pick(rng, row):
    """One entry of `row`, all equally likely."""
    return row[int(rng.random_sample() * len(row))]


def usual(rng, row, share=0.7):
    """The first entry of `row` with probability `share`, else any of the others."""
    if len(row) == 1 or rng.random_sample() < share:
        return row[0]
    return pick(rng, row[1:])


def noun_phrase(symbol, colour="", size="", name=""):
    """An indefinite noun phrase: "a small red cat", "an orange wheel", "a pair of blue scissors"."""
    entry = SYMBOLS[symbol]
    text = " ".join(word for word in (size, colour, name or entry.names[0]) if word)
    if entry.pair:
        return "a pair of " + text
    return ("an " if text[0] in "aeiou" else "a ") + text


def canonical(scene):
    """The caption that states every object, its colour, its motion, and how an arrangement (two things at rest) is
    laid out; in plain words, without sizes."""
    things = [scene.things[i] for i in scene.order]
    nouns = [noun_phrase(thing.symbol, thing.colour) for thing in things]
    verbs = [MOTIONS[thing.motion].verbs[0] for thing in things]
    if len(things) == 1:
        return f"{nouns[0]} {verbs[0]}" if scene.moving else nouns[0]
    relation = relation_from(scene, scene.order[0])
    if relation and is_arrangement(scene):
        return f"{nouns[0]} {RELATIONS[relation][0]} {nouns[1]}"
    if not scene.moving:
        return f"{nouns[0]} and {nouns[1]}"
    return f"{nouns[0]} {verbs[0]} and {nouns[1]} {verbs[1]}"


def is_arrangement(scene):
    """True when nothing moves, so that a caption can only say where things are."""
    return all(thing.motion == "still" for thing in scene.things)


def has_size(thing):
    """True when a caption may state the thing's size: small or large, neither growing nor shrinking."""
    return bool(SIZES[thing.size]) and thing.motion not in ("grow", "shrink")


def relation_from(scene, first):
    """The relation of thing `first` (0 or 1) to the other one, or None."""
    if scene.relation is None or first == 0:
        return scene.relation
    return OPPOSITE[scene.relation]


def describe(scene, rng):
    """A caption as a person might write it: synonyms, another order, a detail left out now and then.

    `rng` is a `numpy.random.RandomState`. What is said is always true; the plainest wording is the likeliest."""
    order = scene.order
    if len(order) == 2 and rng.random_sample() >= 0.75:
        order = order[::-1]
    things = [scene.things[i] for i in order]
    nouns = [_noun(thing, rng) for thing in things]
    if len(things) == 1:
        return _describe_one(things[0], nouns[0], scene.moving, rng)
    relation = relation_from(scene, order[0])
    if is_arrangement(scene):
        return _describe_arrangement(nouns, relation, scene.moving, rng)
    return _describe_two(things, nouns, relation, rng)


def _noun(thing, rng):
    name = usual(rng, SYMBOLS[thing.symbol].names, 0.75)
    colour = thing.colour if rng.random_sample() >= 0.10 else ""
    size = ""
    if has_size(thing) and rng.random_sample() < 0.35:
        size = pick(rng, SIZES[thing.size])
    return noun_phrase(thing.symbol, colour, size, name)


def _motion(thing, rng, form="verbs"):
    return usual(rng, getattr(MOTIONS[thing.motion], form))


def _describe_one(thing, noun, moving, rng):
    choice = rng.random_sample()
    if not moving:
        return noun if choice < 0.6 else f"there is {noun}" if choice < 0.8 else f"a picture of {noun}"
    if choice < 0.12:
        return noun if choice < 0.08 else f"there is {noun}"
    if choice < 0.68:
        return f"{noun} {_motion(thing, rng)}"
    motion = _motion(thing, rng, "participles")
    if choice < 0.80:
        return f"there is {noun} {motion}"
    return f"{noun} {motion}" if choice < 0.90 else f"{noun} is {motion}"


def _describe_arrangement(nouns, relation, moving, rng):
    first, second = nouns
    choice = rng.random_sample()
    if relation is None or choice < 0.06:
        return f"{first} and {second}" if choice < 0.7 else f"there is {first} and {second}"
    phrase = usual(rng, RELATIONS[relation])
    if choice < 0.66:
        return f"{first} {phrase} {second}"
    if choice < 0.76:
        return f"{first} is {phrase} {second}"
    if choice < 0.86:
        return f"there is {first} {phrase} {second}"
    if choice < 0.93 or not moving:
        return f"{second} with {first} {WITH[relation]}"
    return f"{first} {usual(rng, MOTIONS['still'].verbs)} {phrase} {second}"


def _describe_two(things, nouns, relation, rng):
    first, second = nouns
    choice = rng.random_sample()
    if choice < 0.04:
        return f"{first} and {second}" if choice < 0.02 else f"there is {first} and {second}"
    if choice < 0.16:  # the motion of one is left out
        if relation and things[0].motion not in TRANSLATIONS:
            return f"{first} {_motion(things[0], rng)} {RELATIONS[relation][0]} {second}"
        return f"there is {first} and {second} {_motion(things[1], rng)}"
    one, other = (_motion(thing, rng, "verbs" if choice < 0.88 else "participles") for thing in things)
    if choice < 0.88:
        link = "and" if choice < 0.76 else "while" if choice < 0.84 else "as"
        return f"{first} {one} {link} {second} {other}"
    start = "there is " if choice < 0.94 else ""
    return f"{start}{first} {one} and {second} {other}"
