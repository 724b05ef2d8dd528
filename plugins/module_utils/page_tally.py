"""Equal hashes of pages counted within and between processes, and what KSM has merged of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ansible.module_utils.page_census import KPF_KSM, Counted, Hashes

HASH_BITS = 64
# Contents are counted in parts of some so many pages, by the first bits of their hash
PART_PAGES = 1 << 19
MOST_PARTS_BITS = 6
MATRIX_ROWS = 1 << 16
COPIES_BITS = 40
LARGEST_CONTENTS = 10
# Odd, so that frames times it stay distinct: one number for a frame and what it holds.
FRAME_FACTOR = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Tally:
    """Equal pages counted; zero pages are in no number but ``zero_pages``.

    ``zero_pages``, ``distinct_pages``: one for each process; ``alone_pages``: distinct contents that no other
    process has.
    ``contents``: (processes that hold it, copies in all, number of such contents), ascending.
    ``largest``: the contents with most copies, those first: (copies, processes that hold it, hash).
    ``shared``: distinct contents that two processes both hold; the diagonal is ``distinct_pages``.
    """

    zero_pages: tuple[int, ...]
    distinct_pages: tuple[int, ...]
    alone_pages: tuple[int, ...]
    contents: tuple[tuple[int, int, int], ...]
    largest: tuple[tuple[int, int, int], ...]
    shared: tuple[tuple[int, ...], ...]


def tally(hashes: Sequence[Hashes], zero_hash: int) -> Tally:
    """Count equal hashes within and between processes.

    Two different pages among p have equal hashes with a probability of p^2 / 2^65: 1e-7 for two million.
    """
    zero = np.uint64(zero_hash)
    # As many parts as a part has few pages in; each takes several times the memory of its hashes.
    bits = min(MOST_PARTS_BITS, (sum(map(len, hashes)) // PART_PAGES).bit_length())
    heads = [(mine >> np.uint64(HASH_BITS - MOST_PARTS_BITS)).astype(np.uint8) for mine in hashes]
    heads = [mine >> (MOST_PARTS_BITS - bits) for mine in heads]
    parts = [
        _part_of([mine[(head == part) & (mine != zero)] for mine, head in zip(hashes, heads, strict=True)])
        for part in range(1 << bits)
    ]
    contents: Counter[tuple[int, int]] = Counter()
    for part in parts:
        contents.update(part.contents)
    largest = sorted((one for part in parts for one in part.largest), key=lambda one: -one[0])
    return Tally(
        zero_pages=tuple(int(np.count_nonzero(mine == zero)) for mine in hashes),
        distinct_pages=_summed([part.distinct_pages for part in parts]),
        alone_pages=_summed([part.alone_pages for part in parts]),
        contents=tuple((*kind, contents[kind]) for kind in sorted(contents)),
        largest=tuple(largest[:LARGEST_CONTENTS]),
        shared=tuple(map(_summed, zip(*(part.shared for part in parts), strict=True))),
    )


@dataclass(frozen=True)
class _Part:
    """As a Tally, of some of the contents, zero not among them."""

    distinct_pages: tuple[int, ...]
    alone_pages: tuple[int, ...]
    contents: dict[tuple[int, int], int]
    largest: tuple[tuple[int, int, int], ...]
    shared: tuple[tuple[int, ...], ...]


def _summed(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*rows, strict=True)))


def _part_of(hashes: Sequence[Hashes]) -> _Part:
    counted = [np.unique(mine, return_counts=True) for mine in hashes]
    distinct = [len(values) for values, _ in counted]
    if not sum(distinct):
        nothing = (0,) * len(hashes)
        return _Part(nothing, nothing, {}, (), (nothing,) * len(hashes))
    values = np.concatenate([values for values, _ in counted])
    copies = np.concatenate([counts.astype(np.uint32) for _, counts in counted])
    del counted
    owners = np.repeat(np.arange(len(hashes), dtype=np.uint16), distinct)
    order = np.argsort(values, kind="stable")
    values, copies, owners = values[order], copies[order], owners[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    held_by = np.diff(starts, append=len(values))
    copied = np.add.reduceat(copies, starts, dtype=np.int64)
    largest = np.argsort(-copied, kind="stable")[:LARGEST_CONTENTS]
    # One number for each pair of (held by, copies): sorting rows would take several times as long.
    kinds, numbers = np.unique((held_by << COPIES_BITS) + copied, return_counts=True)
    return _Part(
        distinct_pages=tuple(distinct),
        alone_pages=tuple(np.bincount(owners[starts[held_by == 1]], minlength=len(hashes)).tolist()),
        contents={
            (kind >> COPIES_BITS, kind & ((1 << COPIES_BITS) - 1)): number
            for kind, number in zip(kinds.tolist(), numbers.tolist(), strict=True)
        },
        largest=tuple(
            zip(
                copied[largest].tolist(),
                held_by[largest].tolist(),
                values[starts[largest]].tolist(),
                strict=True,
            )
        ),
        shared=_shared(owners, held_by, starts, distinct),
    )


def _shared(
    owners: npt.NDArray[np.uint16],
    held_by: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    distinct: Sequence[int],
) -> tuple[tuple[int, ...], ...]:
    matrix = np.zeros((len(distinct), len(distinct)), dtype=np.int64)
    several = np.flatnonzero(held_by > 1)
    for first in range(0, len(several), MATRIX_ROWS):
        rows = several[first : first + MATRIX_ROWS]
        # float32 counts exactly up to 2^24, and a block has 2^16 rows; BLAS multiplies no integers.
        held = np.zeros((len(rows), len(distinct)), dtype=np.float32)
        lengths = held_by[rows]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        held[np.repeat(np.arange(len(rows)), lengths), owners[np.repeat(starts[rows], lengths) + within]] = 1
        matrix += np.rint(held.T @ held).astype(np.int64)
    np.fill_diagonal(matrix, distinct)
    return tuple(tuple(row) for row in matrix.tolist())


@dataclass(frozen=True)
class Merged:
    """What KSM has merged in the pages that were read: so many mappings of so many frames of its own.

    ``mapped_pages`` - ``frames`` is what is saved by it. It never exceeds what equal contents could save: a
    content's n copies, m of them on its f frames, save m - f, at most n - 1; and since a frame serves at most
    max_page_sharing mappings, at most n - ceil(n / max_page_sharing).
    """

    mapped_pages: int
    frames: int


def merged(counted: Sequence[Counted]) -> Merged:
    """What KSM has merged, by the flags of the frames; mappings of the kernel's zero page are none of it.

    A frame is counted once for each content that was read on it, which is one while nothing moves frames.
    """
    frames, contents = [], []
    for one in counted:
        ours = (one.flags & np.uint64(KPF_KSM)) != 0
        frames.append(one.frames[ours])
        contents.append(one.hashes[ours])
    all_frames = np.concatenate([*frames, np.empty(0, np.uint64)])
    all_contents = np.concatenate([*contents, np.empty(0, np.uint64)])
    pairs = (all_frames * np.uint64(FRAME_FACTOR)) ^ all_contents
    return Merged(mapped_pages=len(pairs), frames=len(np.unique(pairs)))


def merged_zero_pages(mapped: int, ksm_stat: dict[str, Any] | None) -> int:
    """Of so many mappings of the kernel's zero page those that KSM made (use_zero_pages=1)."""
    return min(mapped, int((ksm_stat or {}).get("ksm_zero_pages", 0)))


def pages(mapped: int, ksm_stat: dict[str, Any] | None, present: int, zeros: int) -> dict[str, int]:
    """Resident pages of a guest and zero pages among them.

    A mapping of the kernel's zero page takes no memory: the guest read it and never wrote, or KSM put it
    there. Only the latter was a page before.
    """
    zero_pages = max(0, zeros - mapped + merged_zero_pages(mapped, ksm_stat))
    return {
        "resident_pages": present - zeros + zero_pages,
        "zero_pages": zero_pages,
        "zero_mapped_pages": mapped,
    }
