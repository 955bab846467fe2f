"""Whole numbers that others chose, checked for every room."""

from numbers import Integral


def check_counts(least: int = 1, **counts) -> None:
    """A ValueError naming the first of `counts` that is no whole number of at least `least`."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be at least {least}, a whole number, not {value!r:.60}")
