"""Text for a terminal, a pipe or a file: tables, headings, sentences and notes, by `rich` or as Markdown.

A terminal gets colours and its own width; columns that do not fit are continued below, nothing is cut.
Anything else gets plain text with every table as wide as it needs.
"""

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# Sentences are not wider than this, however wide the terminal is.
PROSE_WIDTH = 110
# Between two columns
_GAP = 2


@dataclass(frozen=True)
class Grid:
    """A table of texts, not drawn yet: see :func:`table`."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int
    title: str


@dataclass(frozen=True)
class Notes:
    """A list of sentences; what begins with "! " is a warning."""

    lines: tuple[str, ...]


Part = str | Text | Grid | Notes


def heading(text: str) -> Text:
    """A line that stands over what follows."""
    return Text(text, style="bold")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1, title: str = "") -> Grid:
    """A table of texts.

    Args:
        heads: a heading for each column; "\\n" begins its next line.
        rows: as many cells each.
        names: so many columns from the left are names, set to the left; the rest are numbers, to the right.
        title: a heading of its own above the table, "" for none.
    """
    return Grid(tuple(heads), tuple(map(tuple, rows)), names, title)


def notes(lines: Iterable[str]) -> Notes:
    """A list of sentences; what begins with "! " is a warning."""
    return Notes(tuple(lines))


def render(*parts: Part, width: int | None = None) -> str:
    """The parts as plain text, an empty line between two; without a width nothing is broken but sentences."""
    console = Console(file=io.StringIO(), width=PROSE_WIDTH, color_system=None, force_terminal=False)
    texts = []
    for part in parts:
        with console.capture() as captured:
            _print(console, part, width or _natural_width(console, part))
        texts.append("\n".join(line.rstrip() for line in captured.get().splitlines()))
    return "\n\n".join(texts) + "\n"


def markdown(*parts: Part) -> str:
    """The parts as Markdown, with tables as GitHub and GitLab draw them."""
    return "\n\n".join(map(_as_markdown, parts)) + "\n"


def show(*parts: Part) -> None:
    """Print the parts on standard output as it can show them."""
    if not sys.stdout.isatty():
        print(render(*parts), end="")
        return
    console = Console()
    width = console.width
    for place, part in enumerate(parts):
        if place:
            console.print()
        _print(console, part, width)


def _natural_width(console: Console, part: Part) -> int:
    unlimited = console.options.update(width=100_000)
    return max(PROSE_WIDTH, console.measure(_drawn(part), options=unlimited).maximum)


def _print(console: Console, part: Part, width: int) -> None:
    # A console crops at its own width whatever the options say.
    console.width = width if isinstance(part, Grid) else min(width, PROSE_WIDTH)
    for place, piece in enumerate(_fitting(part, width) if isinstance(part, Grid) else [part]):
        if place:
            console.print()
        console.print(_drawn(piece), highlight=False, markup=False, emoji=False)


def _fitting(grid: Grid, width: int) -> list[Grid]:
    """The table in pieces that fit, each with the names; whole where the names alone fill the width."""
    columns = list(zip(grid.heads, *grid.rows, strict=True))
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    room = width - sum(one + _GAP for one in widths[: grid.names])
    if room < max(widths[grid.names :], default=0):
        return [grid]
    pieces: list[list[int]] = [[]]
    taken = 0
    for place in range(grid.names, len(columns)):
        if pieces[-1] and taken + widths[place] > room:
            pieces.append([])
            taken = 0
        pieces[-1].append(place)
        taken += widths[place] + _GAP
    return [
        _piece(grid, [*range(grid.names), *mine], grid.title if number == 0 else "")
        for number, mine in enumerate(pieces)
    ]


def _as_markdown(part: Part) -> str:
    if isinstance(part, Grid):
        numbers = len(part.heads) - part.names
        lines = [part.heads, (*[":---"] * part.names, *["---:"] * numbers), *part.rows]
        drawn = [f"| {' | '.join(map(_as_cell, line))} |" for line in lines]
        return "\n".join([*([f"**{part.title}**", ""] if part.title else []), *drawn])
    if isinstance(part, Notes):
        return "\n".join(f"- {line}" for line in part.lines)
    # Lines would flow into one.
    return f"## {part}" if isinstance(part, Text) else part.replace("\n", "  \n")


def _as_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def _piece(grid: Grid, places: Sequence[int], title: str) -> Grid:
    rows = (tuple(row[place] for place in places) for row in grid.rows)
    return table([grid.heads[place] for place in places], rows, names=grid.names, title=title)


def _drawn(part: Part) -> RenderableType:
    if isinstance(part, Grid):
        return _drawn_grid(part)
    if isinstance(part, Notes):
        return _drawn_notes(part)
    return Text(part) if isinstance(part, str) else part


def _drawn_grid(grid: Grid) -> Table:
    drawn = Table(
        title=grid.title or None,
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for place, head in enumerate(grid.heads):
        if place < grid.names:
            drawn.add_column(Text(head), overflow="fold")
        else:
            drawn.add_column(Text(head), overflow="fold", justify="right")
    for row in grid.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def _drawn_notes(shown: Notes) -> Table:
    drawn = Table.grid(padding=(0, 1, 0, 0))
    drawn.add_column()
    drawn.add_column(overflow="fold")
    for line in shown.lines:
        warning = line.startswith("! ")
        style = "yellow" if warning else ""
        drawn.add_row(Text("!" if warning else "-", style), Text(line.removeprefix("! "), style))
    return drawn
