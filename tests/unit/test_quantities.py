"""The registry of quantities: complete, the same in the docs, and one way to show a number."""

import json
import re

import pytest

from analysis.__main__ import main
from analysis.measure.efficiency import CensusMeans
from analysis.measure.statistics import Estimate
from analysis.measure.table import QUANTITIES as AVERAGED
from analysis.plan.design import PROJECT
from analysis.report.dictionary import markdown
from analysis.report.quantities import CENSUS, QUANTITIES, SAVED, USED
from analysis.report.summary import census_part

GROSS = QUANTITIES["gross_mib_per_vm"]


def of_boots(*boots: float, half_width: float | None = None) -> Estimate:
    return Estimate(len(boots), len(boots), sum(boots) / len(boots), half_width, None, None)


def test_the_docs_are_the_registry() -> None:
    written = (PROJECT / "docs" / "quantities.md").read_text(encoding="utf-8")
    assert written == markdown(), "run: python -m analysis quantities --markdown > docs/quantities.md"


def test_whatever_is_averaged_or_counted_is_in_the_registry() -> None:
    assert set(AVERAGED) <= set(QUANTITIES)
    assert set(SAVED) | set(USED) <= set(AVERAGED) | {"paper_mib_per_vm"}
    assert {census_part(QUANTITIES[name]) for name in CENSUS} <= set(CensusMeans.__dataclass_fields__)


@pytest.mark.parametrize("name", QUANTITIES)
def test_each_entry_is_whole(name: str) -> None:
    one = QUANTITIES[name]
    assert one.name == name
    assert re.search(r"(mib_per_vm|mib|seconds|percent|scans|guests|us|per_second|figure)$", name)
    assert one.label and one.unit and one.source
    assert one.sentence[0].isupper() and one.sentence.endswith((".", ")"))
    assert "|" not in one.sentence + one.source + one.label, "it would break the table in the docs"


@pytest.mark.parametrize(
    ("value", "shown"), [(98.76, "98.8"), (-0.04, "0.0"), (None, "-"), (float("nan"), "-"), (-1.5, "-1.5")]
)
def test_a_number_has_the_decimals_of_its_quantity(value: float | None, shown: str) -> None:
    assert GROSS.number(value) == shown


def test_a_difference_has_its_sign() -> None:
    assert GROSS.number(1.0, sign=True) == "+1.0"
    assert QUANTITIES["used_on_mib"].number(3595.4) == "3595"


def test_an_estimate_of_enough_boots_has_its_interval() -> None:
    seen = of_boots(98.0, 99.0, 100.0, half_width=0.64)
    assert GROSS.estimate(seen) == "99.0 ± 0.6"
    assert GROSS.words(seen) == "99.0 ± 0.6 MB/VM (95 % over 3 boots)"


def test_of_two_boots_the_interval_is_printed_as_what_it_is() -> None:
    seen = of_boots(40.0, 60.0, half_width=127.06)
    assert GROSS.estimate(seen) == "50.0 ± 127.1"
    assert GROSS.words(seen) == "50.0 ± 127.1 MB/VM (2 boots: too few to conclude from)"


def test_one_boot_has_no_interval() -> None:
    assert GROSS.estimate(of_boots(98.76)) == "98.8"
    assert GROSS.words(of_boots(98.76)) == "98.8 MB/VM, no interval (1 boot)"


def test_what_is_not_known_is_said() -> None:
    assert (GROSS.estimate(None), GROSS.words(None)) == ("-", "not known")


@pytest.mark.parametrize(("half_width", "shown"), [(0.04, "<0.1"), (0.05, "0.1"), (0.0, "0.0")])
def test_a_narrow_interval_is_not_rounded_to_none(half_width: float, shown: str) -> None:
    assert GROSS.estimate(of_boots(1.0, 1.0, 1.0, half_width=half_width)) == f"1.0 ± {shown}"


def test_the_command_prints_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantities"]) == 0
    assert all(name in capsys.readouterr().out for name in ("gross_mib_per_vm",))
    assert main(["quantities", "gross_mib_per_vm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "gross_mib_per_vm": {
            "label": "gross",
            "unit": "MB/VM",
            "decimals": 1,
            "source": GROSS.source,
            "sentence": GROSS.sentence,
        }
    }
    assert main(["quantities", "grss"]) == 2
    assert "grss is no quantity: there are freed_mib_per_vm" in capsys.readouterr().err
