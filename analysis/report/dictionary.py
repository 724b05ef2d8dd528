"""The registry of quantities as text and as docs/quantities.md."""

from collections.abc import Sequence

from analysis.measure.ledger import SOURCES
from analysis.report.quantities import QUANTITIES, UNITS
from analysis.report.tables import Part, table

_HEADER = """\
# What each number is

Written by `python -m analysis quantities --markdown` from `analysis/report/quantities.py`, where a new
quantity is one entry; a test keeps the two equal. Text, JSON, CSV, the page and the figures take names,
units, decimals and sentences from there.

{units} A mean is that of the boots' means, ± half of its 95 % t interval over boots; what is not known is `-`
in text, `null` in JSON and empty in CSV. JSON and CSV hold every number in full.

| name | shown as | unit | what it is | source |
|---|---|---|---|---|
"""
_LEDGER = """
## Items of the ledger

Steps from KSM's gross counters to MemAvailable and to PSS (`explain`), in bytes of the whole host, shown in
MB/VM; positive is memory saved.

| item | source |
|---|---|
"""


def markdown() -> str:
    """The text of docs/quantities.md."""
    rows = [
        f"| `{one.name}` | {one.label} | {one.unit} | {one.sentence} | {one.source} |"
        for one in QUANTITIES.values()
    ]
    items = [f"| {name} | {source} |" for name, source in SOURCES.items()]
    return _HEADER.format(units=UNITS) + "\n".join(rows) + "\n" + _LEDGER + "\n".join(items) + "\n"


def dictionary_parts(names: Sequence[str]) -> list[Part]:
    """Some quantities as a table, with their sources where there are few of them."""
    chosen = [QUANTITIES[name] for name in names]
    if len(chosen) == len(QUANTITIES):
        rows = [(one.name, one.label, one.unit) for one in chosen]
        return [table(("name", "shown as", "unit"), rows, names=3), UNITS]
    return [f"{one.name}: {one.label}, {one.unit}\n{one.sentence}\nSource: {one.source}" for one in chosen]
