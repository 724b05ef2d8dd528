"""A report as one self-contained page without a script, readable on a phone, on paper and in the dark."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from rich.text import Text

from analysis.report.document import Block, Folded, Picture, Section
from analysis.report.svg import inline_svg
from analysis.report.tables import Grid, Notes

# A wider figure has a row of its own, and a phone moves it sideways: its letters would be too small.
WIDE_INCHES = 6
# It is not drawn smaller than so.
SMALLEST = 0.75
# A table with more columns is moved sideways where the window is narrow, by keys too.
MANY_COLUMNS = 6
TEMPLATES = Path(__file__).resolve().parent / "templates"

_CODE = re.compile("`([^`]+)`")


@dataclass
class _Names:
    """Names of the figures, no two alike on a page."""

    used: int = 0

    def next(self) -> str:
        self.used += 1
        return f"figure{self.used}"


def html_page(sections: Sequence[Section]) -> str:
    """The page; it needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _with_code
    first, *others = sections
    names = _Names()
    return environment.get_template("report.html.j2").render(
        title=first.title,
        answer=list(_shown(first.blocks, names)),
        sections=[
            {"title": one.title, "id": _identity(one.title), "blocks": list(_shown(one.blocks, names))}
            for one in others
        ],
    )


def _identity(title: str) -> str:
    return re.sub("[^a-z]+", "-", title.lower()).strip("-")


def _with_code(text: str) -> Markup:
    """What stands between backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 -- escaped here


def _shown(blocks: Iterable[Block], names: _Names) -> Iterator[dict[str, Any]]:
    """What the template is told of each block; figures that follow one another stand side by side."""
    for kind, some in groupby(blocks, type):
        if kind is Picture:
            yield {
                "kind": "figures",
                "figures": [_figure(one, names) for one in some if isinstance(one, Picture)],
            }
            continue
        for block in some:
            match block:
                case Folded(title=title, blocks=inner):
                    yield {"kind": "folded", "title": title, "blocks": list(_shown(inner, names))}
                case Grid():
                    yield {"kind": "table", "grid": block, "wide": len(block.heads) > MANY_COLUMNS}
                case Notes(lines=lines):
                    yield {"kind": "notes", "lines": lines}
                case Text():
                    yield {"kind": "heading", "text": block.plain}
                case str():
                    yield {"kind": "words", "lines": block.split("\n")}


def _figure(picture: Picture, names: _Names) -> dict[str, Any]:
    inches = picture.figure.get_figwidth()
    return {
        "svg": Markup(inline_svg(picture.figure, names.next(), picture.alternative)),  # noqa: S704 -- ours
        "caption": picture.caption,
        "wide": inches > WIDE_INCHES,
        "least_width": f"{inches * 96 * SMALLEST:.0f}px",
    }
