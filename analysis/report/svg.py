"""Figures as SVG: what a mark stands for where it is pointed at, and for a page the page's own colours."""

import html
import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "ksm-testbed"}

_TIP = "tip: "
# What has no meaning of its own takes the page's colours, light or dark.
_PAGE_COLOURS = {
    "#000000": "currentColor",
    "#222222": "currentColor",
    "#555555": "var(--quiet)",
    "#e5e5e5": "var(--line)",
    "#ffffff": "var(--paper)",
}
_TIPPED = re.compile(rf'<g id="{_TIP}([^"]*)">')
_IDENTITY = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(url\(#|href="#)([^)"]+)')
_TEXT = re.compile(r'style="font: ([0-9.]+)px [^;"]*')


def tip(mark: Artist, words: str) -> None:
    """Let a mark say what it stands for: a browser shows it where it is pointed at."""
    mark.set_gid(_TIP + words)


def svg_text(figure: Figure) -> str:
    """The figure as SVG text, the same for the same data."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _TIPPED.sub(r'<g class="mark"><title>\1</title>', buffer.getvalue())


def inline_svg(figure: Figure, name: str, alternative: str) -> str:
    """The figure as an element of a page that has others.

    Args:
        figure: what is drawn; its size is left to the page.
        name: unlike that of every other one on the page: what is referred to within it begins so.
        alternative: what a reader hears who does not see it.
    """
    text = svg_text(figure)
    text = text[text.index("<svg") :]
    opening = text.index(">") + 1
    (box,) = re.findall(r'viewBox="[^"]*"', text[:opening])
    text = re.sub(r"<(defs>\s*<style.*?</defs|metadata.*?</metadata)>", "", text[opening:], flags=re.DOTALL)
    used = {reference for _kind, reference in _REFERENCE.findall(text)}
    text = _IDENTITY.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = _REFERENCE.sub(rf"\1{name}-\2", text.replace("xlink:href", "href"))
    for colour, ours in _PAGE_COLOURS.items():
        text = text.replace(colour, ours)
    # The letters are the page's.
    text = _TEXT.sub(r'style="font-size: \1px', text)
    return f'<svg role="img" aria-label="{html.escape(alternative)}" {box}>{text}'
