"""The summary and the explanation as one self-contained page, readable on a phone and on a wide screen."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from analysis.measure.efficiency import censuses
from analysis.measure.ledger import SOURCES
from analysis.measure.statistics import Summary
from analysis.report import figures
from analysis.report.explanation import (
    Explained,
    blocks,
    course_grid,
    explain_all,
    guest_grid,
    ledger_grid,
    problems_of,
    waterfalls,
    words,
)
from analysis.report.quantities import CENSUS, QUANTITIES, SAVED, UNITS, USED
from analysis.report.summary import (
    Answer,
    by_place,
    census_grid,
    difference_grid,
    grids,
    measured_on,
    remarks,
)

# A figure is not drawn smaller than so.
SMALLEST = 0.75
# A wider one has a row of its own.
WIDE_INCHES = 6
TEMPLATES = Path(__file__).resolve().parent / "templates"


def html_page(answer: Answer) -> str:
    """One page that needs nothing else, with every figure that the records allow."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [one for one in answer.summaries if one.estimates[figures.USED_OFF] is not None]
    pictures = _figure_2(drawn) if drawn else []
    explained = explain_all(answer)
    counted = dict(zip(map(id, answer.summaries), censuses(answer.summaries, answer.runs)[0], strict=True))
    names = (*SAVED, *USED, *(CENSUS if any(counted.values()) else ()))
    return environment.get_template("report.html.j2").render(
        heading=measured_on(answer.runs, boots=True),
        figures=pictures,
        about_figures=figures.about_intervals(drawn) if pictures else "",
        places=[
            {
                "where": where,
                "grids": [
                    *grids(mine),
                    *filter(None, [census_grid(mine, [counted[id(one)] for one in mine])]),
                ],
            }
            for where, mine in by_place(answer.summaries)
        ],
        differences=[difference_grid(answer.differences)] if answer.differences else [],
        explanations=list(_explanations(explained)),
        notes=[*remarks(answer), *problems_of(explained), UNITS],
        quantities=[QUANTITIES[name] for name in names],
        items=SOURCES,
    )


def _figure_2(summaries: Sequence[Summary]) -> list[dict[str, str]]:
    """The panels of figure 2 one by one, so that a phone shows them below one another."""
    shown = []
    for mine in figures.drawn_places(summaries):
        shown.append(_drawn(figures.saved_figure(mine), "Saved per VM."))
        shown.append(_drawn(figures.used_figure(mine), "Memory that the whole host used."))
    return shown


def _explanations(explained: Sequence[Explained]) -> Iterator[dict[str, object]]:
    for where, mine in blocks(explained):
        pictures = [
            _drawn(figures.ledger_figure([book]), "From KSM's counters to what the host gained.")
            for book in waterfalls(mine)
        ]
        cells = [records for one in mine for records in one.cells]
        growth = figures.burndown_figure(cells, wide=False)
        yield {
            "where": where,
            "figures": [*pictures, _drawn(growth, "How the saving grew while KSM merged, every cell.")],
            "grids": [ledger_grid(mine), course_grid(mine), guest_grid(mine)],
            "words": [words(one) for one in mine],
        }


def _drawn(figure: Figure, caption: str) -> dict[str, str]:
    svg = figures.svg_text(figure)
    # On a phone a wide figure is moved sideways: its letters would be too small.
    inches = figure.get_figwidth()
    return {
        "svg": svg[svg.index("<svg") :],
        "caption": caption,
        "least_width": f"{inches * 96 * SMALLEST:.0f}px",
        "size": "wide" if inches > WIDE_INCHES else "narrow",
    }
