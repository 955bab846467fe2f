"""Captioned files, and many of them in one buffer."""

import marshal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Item:
    """A picture or video file, its captions, and the split its source puts it in (None: the source has none)."""

    path: str
    captions: tuple[str, ...] = ()
    split: str | None = None


class Items(Sequence):
    """Items by number, kept in one buffer; a slice is a list. Python objects would be copied into each loader process
    bit by bit, since whoever reads them counts their references, see https://github.com/pytorch/pytorch/issues/13246"""

    def __init__(self, items: Iterable[Item]):
        kept, ends = bytearray(), [0]
        for item in items:
            kept += marshal.dumps((item.path, item.captions, item.split))
            ends.append(len(kept))
        self.kept, self.ends = bytes(kept), np.array(ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, key):
        numbers = range(len(self))[key]
        if isinstance(key, slice):
            return [self[number] for number in numbers]
        return Item(*marshal.loads(self.kept[self.ends[numbers] : self.ends[numbers + 1]]))
