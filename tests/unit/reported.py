"""Results that hold one of everything that a report shows, and its page."""

import json
from pathlib import Path

from synthetic import store, synthetic_plan
from synthetic_capacity import divergence_record, step, store_capacity
from synthetic_census import census_record
from synthetic_survey import survey_record

from analysis.__main__ import main
from analysis.plan.design import cell_directory

SAVED = {"idle": 60, "constant_fill": 430, "random_fill": 40}
MACHINES = {
    "one": [0] * 5 + [7] * 3 + [8, 100, 101, *range(1000, 1040)],
    "two": [0, 0, 7] + [8] * 9 + [100, 101, *range(2000, 2030)],
}


def store_survey(results: Path, hypervisor: str, run_id: str = "survey1") -> None:
    record = survey_record(MACHINES, hypervisor=hypervisor) | {"run_id": run_id}
    path = results / run_id / hypervisor / "survey.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))


def store_everything(results: Path) -> None:
    """Three foci and two policies on two hosts at two numbers of guests, a census, capacity, two surveys."""
    hosts = ("host1", "host2")
    for run_id, guests, boots in (("fifteen", "15", 2), ("six", "6", 1)):
        plan = synthetic_plan(
            run_id=run_id, focus="all", policies="ksm,advisor", guests=guests, boots=boots, hosts=hosts
        )
        run = store(results, plan, None, lambda cell: SAVED[cell.workload] + cell.boot)
    cell = next(cell for cell in plan.cells if cell.workload == "idle")
    contents = [1] * 256 + list(range(2, 257))
    held = {f"guest{n:02d}": contents for n in range(1, 7)}
    (cell_directory(run, cell) / "census.json").write_text(
        json.dumps(census_record(held, cell=cell) | {"run_id": run_id})
    )
    steps = [
        step(policy, n, n * 300, boot=boot) for policy in ("off", "ksm") for n in (2, 4) for boot in (1, 2)
    ]
    divergence = divergence_record([900, 900, 600, 300, 0], [1000, 1000, 1300, 1600, 1900])
    store_capacity(results, [*steps, divergence])
    for host in hosts:
        store_survey(results, host)


def report_page(results: Path, *words: str) -> str:
    """The page of what is measured there."""
    page = results / "page.html"
    assert main(["report", "--results", str(results), *words, "--html", str(page)]) == 0
    return page.read_text()
