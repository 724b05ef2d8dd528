"""All that is known of some runs and surveys, as the sections of one report."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from analysis.measure.efficiency import CensusMeans
from analysis.measure.ledger import SOURCES
from analysis.measure.policies import Place
from analysis.measure.statistics import Summary
from analysis.model.scoring import groups
from analysis.records.loading import CellRecords
from analysis.records.models import ForecastRecord
from analysis.records.placement import PlacementRecord
from analysis.report import figures
from analysis.report.capacity_pictures import capacity_pictures
from analysis.report.content_figures import census_figure, hosts_figure
from analysis.report.document import Block, Folded, Picture, Section
from analysis.report.explanation import (
    Explained,
    application_grid,
    blocks,
    course_grid,
    decay_grid,
    explain_all,
    guest_grid,
    ledger_grid,
    problems_of,
    tracked_grid,
    waterfalls,
    words,
)
from analysis.report.figures import Waterfall
from analysis.report.forecast import forecast_parts
from analysis.report.forecast_figures import forecast_figure, validation_figure
from analysis.report.growth_figure import burndown_figure
from analysis.report.headline import headline
from analysis.report.placement import placement_parts
from analysis.report.policies import side_parts
from analysis.report.policy_figure import pareto_figure
from analysis.report.quantities import CENSUS, QUANTITIES, SAVED, SURVEY, UNITS, USED
from analysis.report.scores import Scores, score_parts
from analysis.report.summary import (
    Answer,
    by_place,
    census_grid,
    difference_grid,
    grids,
    measured_on,
    remarks,
    row_name,
)
from analysis.report.survey import Survey, hosts_part, survey_parts, to_gain_mib
from analysis.report.tables import Part, heading, notes, table

# Columns that stand side by side
_COLUMNS = 4


@dataclass(frozen=True)
class Forecasted:
    """A forecast from the runs of a report, and the cells that it rests on; how many it does not use."""

    record: ForecastRecord
    cells: tuple[CellRecords, ...]
    cells_left_out: int


@dataclass(frozen=True)
class Contents:
    """What a report is of.

    ``answer``: None without runs; ``forecasts``: one for each host that there can be one of, and ``doubts``
    a sentence for each other; ``scores``: None where neither a stored forecast nor a capacity run is there.
    """

    answer: Answer | None
    policies: tuple[Place, ...]
    forecasts: tuple[Forecasted, ...]
    scores: Scores | None
    surveys: tuple[Survey, ...]
    placements: tuple[PlacementRecord, ...]
    doubts: tuple[str, ...]
    command: str


def sections(contents: Contents) -> list[Section]:
    """The report, its answer first. What there is nothing to say of has no section."""
    answer = contents.answer
    surveys = sorted(contents.surveys, key=to_gain_mib, reverse=True)
    places = [] if answer is None else _places(answer.summaries)
    found = [
        Section(
            "What KSM saves",
            tuple(headline(places[0] if places else (), [one.record for one in contents.forecasts], surveys)),
        )
    ]
    explained: list[Explained] = []
    counted: dict[int, CensusMeans] = {}
    if answer is not None:
        explained = explain_all(answer)
        # Each of an explained line; of the others there is none.
        counted = {id(one.summary): one.census for one in explained if one.census is not None}
        found.append(Section("Saved and used", tuple(_saved(answer, places))))
        found.append(
            Section("To know beside it", (notes([*remarks(answer), *problems_of(explained), UNITS]),))
        )
        if any(len(place.lines) > 1 for place in contents.policies):
            found.append(_policies(contents.policies))
        found.append(Section("Where it comes from", tuple(_explanations(explained))))
        if counted:
            found.append(
                Section("Patterns: what the guests' memory holds", tuple(_patterns(answer, counted)))
            )
    if contents.forecasts:
        found.append(Section("How many more guests fit", tuple(_forecasts(contents.forecasts))))
    if contents.scores is not None:
        found += _scores(contents.scores)
    if surveys:
        found.append(Section("Hosts as they are", tuple(_hosts(surveys, contents.placements))))
    names: tuple[str, ...] = (*SAVED, *USED) if answer is not None else ()
    names += CENSUS if counted else ()
    names += SURVEY if surveys else ()
    found.append(_provenance(contents, names))
    return found


def _places(summaries: Sequence[Summary]) -> list[list[Summary]]:
    """By number and size of guests: what is drawn together; those with the most boots first."""
    drawn = (
        figures.drawn_places(summaries) if any(one.estimates[figures.USED_OFF] for one in summaries) else []
    )
    drawn.sort(key=lambda mine: sum(len(one.boots) for one in mine), reverse=True)
    return drawn or [[one for one in summaries if one.guests == summaries[0].guests]] if summaries else []


def _saved(answer: Answer, places: Sequence[Sequence[Summary]]) -> Iterator[Block]:
    """What is drawn most boots of is open, the rest folded."""
    shown: set[int] = set()
    for number, drawn in enumerate(places):
        shown |= set(map(id, drawn))
        told = (*_figure_2(drawn), *_tables(drawn, headed=number == 0))
        yield from told if number == 0 else (Folded(by_place(drawn)[0][0], told),)
    rest = [one for one in answer.summaries if id(one) not in shown]
    for where, mine in by_place(rest):
        yield Folded(where, tuple(grids(mine)))
    if answer.differences:
        yield difference_grid(answer.differences)


def _tables(summaries: Sequence[Summary], *, headed: bool) -> Iterator[Part]:
    places = by_place(summaries)
    for where, mine in places:
        if headed or len(places) > 1:
            yield heading(where)
        yield from grids(mine)


def _figure_2(drawn: Sequence[Summary]) -> Iterator[Part | Picture]:
    """The panels of figure 2 one by one, so that a phone shows them below one another."""
    if not any(one.estimates[figures.USED_OFF] for one in drawn):
        return
    saved = [
        f"{row_name(one)}: freed {QUANTITIES['freed_mib_per_vm'].words(one.estimates['freed_mib_per_vm'])}"
        + (f", the paper {QUANTITIES['paper_mib_per_vm'].number(one.paper.paper)}" if one.paper else "")
        for one in drawn
    ]
    used = [f"{row_name(one)}: {' with KSM off, '.join(_used(one))} with it on" for one in drawn]
    yield Picture(
        figures.saved_figure(drawn), "Saved per VM, beside the paper's.", f"Bars. {'; '.join(saved)}."
    )
    yield Picture(
        figures.used_figure(drawn), "Memory that the whole host used.", f"Bars, MiB. {'; '.join(used)}."
    )
    yield figures.about_intervals(drawn).replace("\n", " ")


def _used(one: Summary) -> list[str]:
    names = ("used_available_off_mib", "used_available_on_mib")
    return [QUANTITIES[name].estimate(one.estimates[name]) for name in names]


def _policies(places: Sequence[Place]) -> Section:
    pictures: list[Block] = []
    for place in places:
        try:
            figure = pareto_figure([place])
        except figures.FigureError:
            continue
        pictures.append(
            Picture(
                figure,
                f"{place.hypervisor}, {place.workload}: memory that the guests use against ksmd's CPU.",
                f"Points of {len(place.lines)} policies: {', '.join(line.policy for line in place.lines)}. "
                "The tables below have their numbers.",
            )
        )
    return Section("Policies side by side", (*pictures, *side_parts(places)))


def _explanations(explained: Sequence[Explained]) -> Iterator[Block]:
    most = max((len(one.cells) for one in explained), default=0)
    for where, mine in sorted(blocks(explained), key=lambda block: -sum(len(one.cells) for one in block[1])):
        told = tuple(_explanation(mine))
        if any(len(one.cells) == most for one in mine):
            yield from (heading(where), *told)
        else:
            yield Folded(where, told)


def _explanation(mine: Sequence[Explained]) -> Iterator[Part | Picture]:
    yield from map(words, mine)
    for book in waterfalls(mine):
        yield Picture(
            figures.ledger_figure([book]), "From KSM's counters to what the host gained.", _told(book)
        )
    for first in range(0, len(mine), _COLUMNS):
        yield ledger_grid(mine[first : first + _COLUMNS])
    cells = [records for one in mine for records in one.cells]
    grew = "; ".join(
        f"{row_name(one.summary)}: settled after "
        f"{QUANTITIES['converged_after_seconds'].words(one.summary.estimates['converged_after_seconds'])}"
        for one in mine
    )
    yield Picture(
        burndown_figure(cells, wide=False),
        f"How the saving grew while KSM merged, {len(cells)} cells.",
        f"Lines that rise to the saving. {grew}.",
    )
    for first in range(0, len(mine), _COLUMNS):
        yield tracked_grid(mine[first : first + _COLUMNS])
        yield course_grid(mine[first : first + _COLUMNS])
    yield guest_grid(mine)
    yield from filter(None, [application_grid(mine), decay_grid(mine)])


def _told(book: Waterfall) -> str:
    gross, end = QUANTITIES["gross_mib_per_vm"], QUANTITIES["mem_available_mib_per_vm"]
    steps = "; ".join(f"{name} {gross.number(step, sign=True)}" for name, step in book.steps.items())
    return (
        f"Waterfall of {book.name}, MB/VM: gross counters {gross.number(book.start)}; {steps}; "
        f"{end.label} {end.number(book.end)}."
    )


def _patterns(answer: Answer, counted: dict[int, CensusMeans]) -> Iterator[Block]:
    for where, mine in by_place(answer.summaries):
        seen = {row_name(one): counted[id(one)] for one in mine if id(one) in counted}
        if not seen:
            continue
        yield heading(where)
        yield Picture(
            census_figure(seen),
            "Memory of a guest by what KSM could merge of it; black: what it had merged.",
            "Bars, MB/VM. " + " ".join(f"{name}: {census.words()}" for name, census in seen.items()),
        )
        yield from filter(None, [census_grid(mine, [counted.get(id(one)) for one in mine])])


def _forecasts(forecasts: Iterable[Forecasted]) -> Iterator[Block]:
    for one in forecasts:
        for load in one.record.loads:
            alone = one.record.model_copy(update={"loads": (load,)})
            yield Picture(
                forecast_figure(alone),
                f"{load.workload}: memory against the number of guests, and where the limits are.",
                "Rising lines of memory used with KSM off and on, and where all pages diverge. The table "
                "below has where they meet the host's memory.",
            )
        yield from forecast_parts(one.record, one.cells, one.cells_left_out)


def _scores(scores: Scores) -> Iterator[Section]:
    pictures: list[Block] = [
        Picture(
            validation_figure(group),
            f"Errors of the forecasts by the model {group.name}.",
            f"Marks of {len(group.joined)} cells by their error; the tables below have means and worst.",
        )
        for group in groups(scores.joined)
    ]
    drawn = [picture for judged in scores.capacity for picture in capacity_pictures(judged)]
    yield Section(
        "Forecasts proved, and performance" if drawn else "Forecasts proved",
        (*pictures, *drawn, *score_parts(scores)),
    )


def _hosts(surveys: Sequence[Survey], placements: Sequence[PlacementRecord]) -> Iterator[Block]:
    records = [seen.record for seen in surveys]
    known = [seen for seen in surveys if seen.pages is not None]
    if known:
        yield Picture(
            hosts_figure(known),
            "What KSM would save on each host; black: what it saves now.",
            "Bars, MiB. The tables below have the numbers.",
        )
    if len(records) > 1:
        yield hosts_part(records)
    for placement in placements:
        yield from placement_parts(placement, records)
    for record in records:
        yield from survey_parts(record)


def _provenance(contents: Contents, names: Sequence[str]) -> Section:
    answer = contents.answer
    shown = [QUANTITIES[name] for name in names]
    described = [(f"{one.label}, {one.unit}", one.sentence, one.source) for one in shown]
    items = [] if answer is None else [(name, "", source) for name, source in SOURCES.items()]
    return Section(
        "Where it was measured, and how to make this again",
        (
            *(measured_on(answer.runs, boots=True) if answer is not None else ()),
            *([notes(f"! {doubt}" for doubt in contents.doubts)] if contents.doubts else []),
            f"Made by: {contents.command}",
            Folded(
                "What each number is",
                (table(("number", "what it is", "from"), [*described, *items], names=3),),
            ),
        ),
    )
