"""A baseline and what is measured now: the verdict in a sentence, and one for each saving."""

import json

from analysis.measure.checking import NO_WORSE, UNTOLD, WORSE, Check, CheckedSaving
from analysis.measure.comparing import Contrast
from analysis.measure.statistics import LEAST_BOOTS
from analysis.report.comparison import (
    OF_A,
    Compared,
    beginning,
    comparison_content,
    full_name,
    method,
    of_a_percent,
    remarks,
    treatment,
)
from analysis.report.quantities import QUANTITIES
from analysis.report.tables import Part, heading, notes


def check_parts(compared: Compared, found: Check) -> list[Part]:
    """The verdict, in what the two were measured differently, and a sentence for each saving."""
    order = (WORSE, UNTOLD, NO_WORSE)
    savings = sorted(found.savings, key=lambda one: order.index(one.verdict))
    return [
        heading(verdict_sentence(found)),
        *beginning(compared),
        notes([*(saving_sentence(one, found.tolerance_percent) for one in savings), *remarks(compared)]),
    ]


def check_json(compared: Compared, found: Check) -> str:
    """The comparison, the baseline as a, with tolerance_percent, verdict and savings."""
    content = {
        **comparison_content(compared),
        "tolerance_percent": found.tolerance_percent,
        "verdict": found.verdict,
        "savings": [
            {
                **treatment(one.line.a),
                "name": one.name,
                "verdict": one.verdict,
                "shown_at_percent": one.shown_at_percent,
                "sentence": saving_sentence(one, found.tolerance_percent).removeprefix("! "),
            }
            for one in found.savings
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def verdict_sentence(found: Check) -> str:
    """What the exit code says."""
    by = f"by more than {found.tolerance_percent:g} %"
    if not found.savings:
        return f"It cannot be told whether a saving is worse {by}: nothing can be compared."
    verdicts = [one.verdict for one in found.savings]
    if found.verdict == WORSE:
        return f"Worse than the baseline {by}: {verdicts.count(WORSE)} of {len(verdicts)} savings."
    if found.verdict == NO_WORSE:
        return f"No saving is worse than the baseline {by}: shown of all {len(verdicts)}."
    shown, missing = verdicts.count(NO_WORSE), len(found.comparison.only_a)
    more = f"; rows of the baseline that were not measured again: {missing}" if missing else ""
    told = f"{shown} of {len(verdicts)} are shown not to be"
    return f"It cannot be told whether a saving is worse {by}: {told}{more}."


def saving_sentence(saving: CheckedSaving, tolerance_percent: float) -> str:
    """One saving and what follows, as a note; a warning unless it is shown to be no worse."""
    line, quantity = saving.line, QUANTITIES[saving.name]
    name = f"{full_name(line.a)}, {quantity.label}"
    contrast = line.contrasts[saving.name]
    if contrast is None:
        reasons = line.not_compared or (*line.a.unknown, *line.b.unknown)
        return f"! {name}: cannot be told: {'; '.join(reasons)}."
    before, now = quantity.estimate(contrast.a), quantity.estimate(contrast.b)
    difference = quantity.estimate(contrast.difference, sign=True)
    percent = OF_A.number(of_a_percent(contrast), sign=True)
    seen = f"{before} {quantity.unit} in the baseline, {now} now, {difference} ({percent} %; {method(line)})"
    if saving.verdict == UNTOLD:
        return f"! {name}: cannot be told: {seen}; {_what_helps(saving, contrast)}."
    mark = "! " if saving.verdict == WORSE else ""
    return f"{mark}{name}: {saving.verdict} by more than {tolerance_percent:g} %: {seen}."


def _what_helps(saving: CheckedSaving, contrast: Contrast) -> str:
    if not contrast.conclusive:
        return f"it takes {LEAST_BOOTS} boots of each or more"
    percent = saving.shown_at_percent
    enough = f", and --tolerance-percent {percent} would do" if percent else ""
    return f"more boots narrow the interval{enough}"
