"""A report: sections of sentences, tables and figures, the same for a page, as Markdown and as text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from analysis.report.tables import Part, heading


@dataclass(frozen=True)
class Picture:
    """A figure, shown on a page alone: a table beside it holds its numbers.

    ``alternative``: what it shows, for a reader who does not see it.
    """

    figure: Figure
    caption: str
    alternative: str


@dataclass(frozen=True)
class Folded:
    """What a page shows when it is asked for."""

    title: str
    blocks: tuple[Part | Picture, ...]


Block = Part | Picture | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


def parts_of(sections: Iterable[Section]) -> Iterator[Part]:
    """The sections for text and Markdown: everything but the figures."""
    for section in sections:
        yield heading(section.title)
        for block in section.blocks:
            if isinstance(block, Folded):
                yield heading(block.title)
            inner = block.blocks if isinstance(block, Folded) else (block,)
            yield from (part for part in inner if not isinstance(part, Picture))
