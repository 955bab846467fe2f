"""One call for all searches: the options say which of them runs."""

from inspect import signature

from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from gitdistill.decoding.loop import Decoded
from gitdistill.decoding.search import beam, greedy, sample

# Options that a single search has. Naming one of them chooses that search.
DISTINCTIVE = {
    beam: {"beams", "length_penalty", "penalty", "stop"},
    sample: {"temperature", "top_k", "top_p", "seed"},
}

# Options of every search, and what they make of the next token's scores.
PROCESSORS = {
    "repetition_penalty": lambda penalty: RepetitionPenaltyLogitsProcessor(float(penalty)),
    "no_repeat_ngram": NoRepeatNGramLogitsProcessor,
}


def decode(model, frames, defaults: dict | None = None, **options) -> Decoded:
    """Run `beam`, `sample` or `greedy`, whichever the options belong to.

    `beams=3` or `length_penalty=0.6` chooses beam search, `temperature=0.7` or `top_p=0.9` chooses sampling. When
    no option decides, `defaults` decide in the same way; when they do not either, the search is greedy. `options`
    override `defaults`, and those `defaults` that the chosen search does not have are ignored.

    Every search takes `repetition_penalty` (above 1, words that were said become less likely;
    https://arxiv.org/abs/1909.05858) and `no_repeat_ngram=3` (no three tokens come again in this order).

    Raises ValueError for options of two searches at once, for an option that the search does not have, and for what
    the search itself refuses.
    """
    defaults = defaults or {}
    search = _chosen_by(options) or _chosen_by(defaults) or greedy
    accepted = signature(search).parameters
    if unknown := [name for name in options if name not in [*accepted, *PROCESSORS]]:
        raise ValueError(
            f"{search.__name__} has no option {', '.join(unknown)}: choose among {', '.join(accepted)}"
        )
    given = defaults | options
    made = [make(given[name]) for name, make in PROCESSORS.items() if given.get(name) is not None]
    chosen = {name: value for name, value in given.items() if name in accepted}
    return search(model, frames, **chosen | {"processors": [*chosen.get("processors", ()), *made]})


def _chosen_by(options: dict):
    """The search that has these options; None when every search has them."""
    found = {search: [name for name in options if name in own] for search, own in DISTINCTIVE.items()}
    if all(found.values()):
        raise ValueError(
            f"{', '.join(found[beam])} belongs to beam search and {', '.join(found[sample])} to sampling: "
            "give options of one search"
        )
    return next((search for search, names in found.items() if names), None)
