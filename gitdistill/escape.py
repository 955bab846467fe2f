"""Texts that others chose (names of files, captions, settings), made harmless for where they are shown."""

import re

# What moves a terminal's cursor or its reading order, ends a line or a cell, or cannot be written at all.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MARKUP = re.compile(r"[^\w /.,%()+-]|(?<=www)\.", re.IGNORECASE)


def one_line(text: str) -> str:
    r"""A text for a terminal, a cell of a table or a JSON string: control characters as \u001b."""
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def brief(text: str) -> str:
    """The beginning of a text, in one line."""
    return one_line(text if len(text) < 100 else text[:96] + " ...")


def markdown(text: str) -> str:
    """A text that Markdown and HTML show as it is."""
    return MARKUP.sub(lambda match: f"&#{ord(match[0])};", one_line(text))
