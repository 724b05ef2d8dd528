"""Which pages of a census are kept, and which are looked at twice.

Kept are contents, by their hash: one in so many of all contents, each with all of its copies, so that what
is found of them is right but for its number. Pages drawn by their address would cost less reading and say
little: two copies of a content are both drawn once in the square of that number. What a content's hash is
nobody can foresee, as a census has a secret seed of its own: each is kept with the same chance.

A few contents may have as many copies as all others together; whether one of these is kept decides what a
sample says. So a first look at some pages, drawn by their address, finds contents with many copies, and these
are kept whatever their hash. The same pages are looked at again at the end: what is another then has changed
while the census was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

# What stands for a page that is not there; 1 in 2^64 contents has this hash.
ABSENT = 0
LOOK_ONE_IN = 64
# A content that a look at one page in 64 sees so often has some 128 copies, or is one of many with fewer.
MANY_LOOKS = 2
MOST_ALWAYS = 1024
SKETCH_ONE_IN = 256


@dataclass(frozen=True)
class Keep:
    """Of ``one_in`` contents one is kept by its hash; ``always``: hashes, sorted, kept in any case."""

    one_in: int
    always: Hashes

    def mask(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of these are kept."""
        kept: npt.NDArray[np.bool_] = (hashes % np.uint64(self.one_in)) == 0
        return kept | self.is_always(hashes)

    def is_always(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of these are kept in any case."""
        if not len(self.always):
            return np.zeros(len(hashes), np.bool_)
        places = np.minimum(np.searchsorted(self.always, hashes), len(self.always) - 1)
        equal: npt.NDArray[np.bool_] = self.always[places] == hashes
        return equal


@dataclass(frozen=True)
class Look:
    """A look at one page in so many, the same ones whenever the seed is the same."""

    one_in: int

    def drawn(self, seed: int, place: int, pages: int) -> npt.NDArray[np.bool_]:
        """Which of the pages of a range are drawn."""
        random = np.random.default_rng([seed, place]).random(pages)
        drawn: npt.NDArray[np.bool_] = random < 1 / self.one_in
        return drawn

    @staticmethod
    def numbers(drawn: npt.NDArray[np.bool_], present: npt.NDArray[np.bool_], hashes: Hashes) -> Hashes:
        """One number for each page that is drawn, from the hashes of those of them that are present."""
        numbers = np.full(len(drawn), ABSENT, np.uint64)
        numbers[drawn & present] = hashes
        return numbers[drawn]


def keep_of(looks: Sequence[Hashes], zero_hash: int, one_in: int) -> Keep:
    """What is kept after a first look: one content in so many, zeros, and contents with many copies."""
    seen = np.concatenate([np.empty(0, np.uint64), *looks])
    contents, times = np.unique(seen[seen != ABSENT], return_counts=True)
    often = np.flatnonzero(times >= MANY_LOOKS)
    often = often[np.argsort(-times[often], kind="stable")][:MOST_ALWAYS]
    return Keep(one_in, np.unique(np.append(contents[often], np.uint64(zero_hash))))


def sketch_one_in(one_in: int) -> int:
    """Of so many contents a sketch has one: about 256, and each is one that a sample of one_in has kept."""
    return one_in * max(1, SKETCH_ONE_IN // one_in)


def sketch(hashes: Hashes, zero_hash: int, one_in: int) -> Hashes:
    """Of these pages the different contents, but zero, that a sketch of any host would have."""
    kept: Hashes = np.unique(hashes[(hashes % np.uint64(one_in) == 0) & (hashes != np.uint64(zero_hash))])
    return kept


@dataclass(frozen=True)
class Moved:
    """Of the pages looked at twice those that were there at least once, and those that became others."""

    looked_pages: int
    changed_pages: int


def moved(first: Sequence[Hashes], second: Sequence[Hashes]) -> Moved:
    """Compare two looks at the same pages: a page changed, came or went."""
    one, other = (np.concatenate([np.empty(0, np.uint64), *looks]) for looks in (first, second))
    there = (one != ABSENT) | (other != ABSENT)
    return Moved(int(np.count_nonzero(there)), int(np.count_nonzero(one != other)))
