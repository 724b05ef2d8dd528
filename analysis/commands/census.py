"""Equal pages within and between guests: count those of the running guests, or show what was counted.

With neither FILE nor --run the guests that run now are counted (after a run with `-e keep_guests=true`): they
are paused for some seconds, every page is hashed, and no content leaves the host's memory.

example: python -m analysis census --results results/reference/cells --run idle
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TextIO

from analysis.commands.options import add_hypervisor, add_json, add_results, add_run
from analysis.plan.design import PROJECT, check_run_id, new_run_id

PLAYBOOK = Path("playbooks/census.yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("file", metavar="FILE", type=Path, nargs="?", help="show this census")
    add_run(choice, "count now")
    add_results(parser)
    add_hypervisor(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show censuses, one taken now unless others are asked for; 1 when taking it failed.

    Raises UserError or OSError with a text for the user.
    """
    from analysis.records.models import CensusRecord
    from analysis.records.reading import RecordError, read_record
    from analysis.report.census import census_content, census_parts
    from analysis.report.quantities import CENSUS
    from analysis.report.summary import described
    from analysis.report.tables import Part, heading, show

    if arguments.file:
        paths = [arguments.file]
    elif arguments.run:
        paths = [path for run_id in arguments.run for path in _stored(_directory(arguments.results, run_id))]
    else:
        run_id = new_run_id()
        if _count(arguments.results.absolute(), run_id, sys.stderr if arguments.json else sys.stdout):
            return 1
        paths = _stored(arguments.results / run_id)
    if arguments.hypervisor:
        paths = [path for path in paths if arguments.hypervisor in path.parts]
    if not paths:
        raise RecordError("there is no census here: none was taken, or not on this host.")
    records = [(path, read_record(path, CensusRecord)) for path in paths]
    if arguments.json:
        content = {
            "schema_version": 1,
            "quantities": described(CENSUS),
            "censuses": [census_content(record) for _path, record in records],
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return 0
    parts: list[Part] = []
    for path, record in records:
        parts += [*([heading(str(path))] if len(records) > 1 else []), *census_parts(record)]
    show(*parts)
    return 0


def _count(results: Path, run_id: str, out: TextIO) -> int:
    """Take a census of the guests of every host; the playbook's exit code."""
    from analysis.progress.campaign import Campaign, Progress, play

    variables = {"results_directory": str(results)}
    return play(Campaign(PROJECT, results, None, variables, run_id), PLAYBOOK, Progress(out))


def _directory(results: Path, run_id: str) -> Path:
    """Of a run that measured cells, or of a census by itself, which has no plan. Raises UserError."""
    from analysis.records.loading import find_run

    directory = results / check_run_id(run_id)
    return directory if directory.is_dir() else find_run(results, run_id)


def _stored(directory: Path) -> list[Path]:
    return sorted(directory.rglob("census.json"))
