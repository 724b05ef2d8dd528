"""What a page census tells: the ideal saving, KSM's efficiency, and distinct pages of fewer or more guests.

A content is what one or more pages hold; zero pages are counted apart. Of every other content it is known how
many guests hold it, in how many copies, and not which guests.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from analysis.measure.chances import Chances, fit_chances
from analysis.measure.saving import UNCOUNTED_ZEROS, Unknown, Value
from analysis.records.models import CensusRecord, LargestContent, MergedPages

OTHER = "other"
# Of a content in each guest that holds it, 4 MB of pages of 4 KiB: what systems have in common is less.
MANY_COPIES = 1000


@dataclass(frozen=True)
class Contents:
    """``contents`` different contents, each held by ``guests`` guests in ``copies`` copies altogether."""

    guests: int
    copies: int
    contents: int


@dataclass(frozen=True)
class Guest:
    """Pages of one guest; ``distinct_pages`` are the different contents other than zero."""

    name: str
    resident_pages: int
    zero_pages: int
    distinct_pages: int

    @property
    def within_pages(self) -> int:
        """Duplicates within the guest, zero pages apart."""
        return self.resident_pages - self.zero_pages - self.distinct_pages


@dataclass(frozen=True)
class IdealSaving:
    """Where the resident pages of all guests go under a perfect KSM; the first four parts sum to them.

    ``kept_pages``: one page for each content. ``zero_pages``, ``within_pages``, ``between_pages``: pages that
    can go, for they are zero, a duplicate within a guest (I) or one between guests (D). ``limited_pages``:
    those of them that stay all the same, since one page serves at most max_page_sharing copies.
    """

    kept_pages: int
    zero_pages: int
    within_pages: int
    between_pages: int
    limited_pages: int

    @property
    def ideal_pages(self) -> int:
        """What a perfect KSM saves with this max_page_sharing."""
        return self.zero_pages + self.within_pages + self.between_pages - self.limited_pages


@dataclass(frozen=True)
class Census:
    """A census of all guests of a host.

    ``shared_contents``: distinct contents that two guests both hold, in the order of ``guests``.
    ``saved_pages``: what KSM had saved of these very pages at that moment, by their frames: mappings of
    merged frames less the frames, and mappings of the kernel's zero page that KSM made. ``gross_pages``: the
    same by KSM's counters, in which a page that a guest has written to since stays until ksmd comes by again.
    ``strangers``: contents in many copies in each guest that holds them that are neither zero nor what the
    workload filled: an application's own, or left behind by something.
    """

    guests: tuple[Guest, ...]
    contents: tuple[Contents, ...]
    shared_contents: tuple[tuple[int, ...], ...]
    page_size_bytes: int
    max_page_sharing: int
    use_zero_pages: bool
    saved_pages: int | Unknown
    gross_pages: int | Unknown
    strangers: tuple[LargestContent, ...]

    @cached_property
    def resident_pages(self) -> int:
        """Resident pages of all guests, zero pages included."""
        return sum(guest.resident_pages for guest in self.guests)

    @cached_property
    def zero_pages(self) -> int:
        """Zero pages of all guests."""
        return sum(guest.zero_pages for guest in self.guests)

    @cached_property
    def guests_distinct_pages(self) -> int:
        """Different contents other than zero of each guest by itself, summed."""
        return sum(guest.distinct_pages for guest in self.guests)

    @property
    def distinct_pages(self) -> int:
        """Different contents other than zero on the host."""
        return sum(kind.contents for kind in self.contents)

    @property
    def efficiency(self) -> Value:
        """What KSM saves of these pages over what it could: at most 1, for both are of the same pages."""
        if isinstance(self.saved_pages, Unknown):
            return self.saved_pages
        ideal = self.saving().ideal_pages
        return self.saved_pages / ideal if ideal else Unknown("no page of the guests can go")

    def saving(self) -> IdealSaving:
        """The ideal saving with its parts.

        max_page_sharing: a content with c copies needs ceil(c / max_page_sharing) pages
        (Documentation/admin-guide/mm/ksm.rst). With use_zero_pages no zero page is kept, else one is.
        """
        kept_zero = int(self.zero_pages > 0 and not self.use_zero_pages)
        return IdealSaving(
            kept_pages=self.distinct_pages + kept_zero,
            zero_pages=self.zero_pages - kept_zero,
            within_pages=sum(guest.within_pages for guest in self.guests),
            between_pages=self.guests_distinct_pages - self.distinct_pages,
            limited_pages=sum(kind.contents * self._further(kind.copies) for kind in self._kinds),
        )

    @cached_property
    def held(self) -> tuple[int, ...]:
        """``held[j]``: the contents that exactly j of the guests hold, zero apart."""
        held = [0] * (len(self.guests) + 1)
        for kind in self.contents:
            held[kind.guests] += kind.contents
        return tuple(held)

    @cached_property
    def chances(self) -> Chances:
        """Contents by their chance of being in a guest."""
        return fit_chances(self.held)

    def distinct(self, guests: int) -> float:
        """Expected different contents (zero apart) of so many guests.

        Up to the number n counted it is exact, the mean over all choices of k from the n guests
        (sample-based rarefaction; Colwell, Mao and Chang, Ecology 85, 2004): with f_j contents that exactly
        j of n guests hold, S(k) = sum over j of f_j (1 - C(n-j, k) / C(n, k)). Beyond n more guests like
        these are assumed, exchangeable, none of a new kind, by the fitted chances.
        """
        counted = len(self.guests)
        if guests > counted:
            return sum(self.held) + self.chances.new(guests)
        ways = math.comb(counted, guests)
        return sum(
            number * (1 - math.comb(counted - j, guests) / ways) for j, number in enumerate(self.held) if j
        )

    def kept(self, guests: int) -> float:
        """Expected physical pages that a perfect KSM keeps of so many guests, max_page_sharing included.

        ``distinct`` and the zero page, and for a content with more copies than max_page_sharing the further
        pages that it needs. Copies of a content are taken as spread evenly over the guests that hold it,
        which matters above max_page_sharing alone; beyond the guests counted they grow in proportion.
        """
        counted = len(self.guests)
        further = 0.0
        for kind in self._kinds:
            # Of so few copies none needs a second page, however they are spread.
            if kind.copies * max(1.0, guests / counted) <= self.max_page_sharing:
                break
            if guests <= counted:
                further += kind.contents * sum(
                    chance * self._further(holders * kind.copies / kind.guests)
                    for holders, chance in _hypergeometric(counted, kind.guests, guests)
                    if holders
                )
            else:
                further += kind.contents * self._further(guests * kind.copies / counted)
        if self.zero_pages and not self.use_zero_pages:
            without = sum(not guest.zero_pages for guest in self.guests)
            further += 1 - (
                math.comb(without, guests) / math.comb(counted, guests) if guests <= counted else 0
            )
        return self.distinct(guests) + further

    def saved_bytes(self, guests: int) -> float:
        """Expected gross saving of a perfect KSM, bytes. Worked out once: fits ask for the same again."""
        if guests not in self._saved_bytes:
            resident = self.resident_pages * guests / len(self.guests)
            self._saved_bytes[guests] = (resident - self.kept(guests)) * self.page_size_bytes
        return self._saved_bytes[guests]

    @cached_property
    def _saved_bytes(self) -> dict[int, float]:
        return {}

    def pool_bytes(self, guests: int) -> float:
        """The different contents of so many guests less those that are one guest's alone, bytes."""
        return (self.distinct(guests) - self.chances.alone * guests) * self.page_size_bytes

    def _further(self, copies: float) -> int:
        """Pages beyond the first that a content needs."""
        return max(0, math.ceil(copies / self.max_page_sharing) - 1)

    @cached_property
    def _kinds(self) -> tuple[Contents, ...]:
        """All contents that KSM keeps, those of most copies first.

        Zero is one of them unless it uses the kernel's zero page.
        """
        holders = sum(guest.zero_pages > 0 for guest in self.guests)
        zero = () if self.use_zero_pages or not holders else (Contents(holders, self.zero_pages, 1),)
        return tuple(sorted((*self.contents, *zero), key=lambda kind: -kind.copies))


def _hypergeometric(total: int, holders: int, drawn: int) -> list[tuple[int, float]]:
    """How many of the drawn guests hold a content, with the chance of it."""
    ways = math.comb(total, drawn)
    return [
        (held, math.comb(holders, held) * math.comb(total - holders, drawn - held) / ways)
        for held in range(max(0, drawn - (total - holders)), min(holders, drawn) + 1)
    ]


def from_record(record: CensusRecord) -> Census:
    """The census of a record."""
    observed, found = record.observed, record.provenance
    table = observed.contents
    return Census(
        guests=tuple(
            Guest(name, seen.resident_pages, seen.zero_pages, seen.distinct_pages)
            for name, seen in sorted(observed.guests.items())
        ),
        contents=tuple(
            Contents(*row) for row in zip(table.guests, table.copies, table.contents, strict=True)
        ),
        shared_contents=observed.shared_contents,
        page_size_bytes=found.page_size_bytes,
        max_page_sharing=found.max_page_sharing,
        use_zero_pages=found.use_zero_pages,
        saved_pages=_saved_pages(observed.merged),
        gross_pages=_gross_pages(observed.ksm, use_zero_pages=found.use_zero_pages),
        strangers=tuple(
            one
            for one in observed.largest_contents
            if one.kind == OTHER and one.copies >= MANY_COPIES * one.guests
        ),
    )


def _saved_pages(merged: MergedPages | None) -> int | Unknown:
    if merged is None:
        return Unknown("the census is of a version that did not count merged pages")
    if merged.zero_pages is None:
        return UNCOUNTED_ZEROS
    return merged.mapped_pages - merged.frames + merged.zero_pages


def _gross_pages(ksm: Mapping[str, int | None], *, use_zero_pages: bool) -> int | Unknown:
    if ksm["ksm_zero_pages"] is None and use_zero_pages:
        return UNCOUNTED_ZEROS
    return (ksm["pages_sharing"] or 0) + (ksm["ksm_zero_pages"] or 0)
