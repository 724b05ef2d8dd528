"""What KSM would save on hosts as they are, what it saves now, and how many more machines fit.

Shows what `ansible-playbook playbooks/survey.yml -i HOSTS -e census=true` has read.

With --proof: surveys that an experiment took in its cells before KSM was on (-e survey_sample=1), beside what
KSM then saved.

example: python -m analysis survey --json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.options import add_hypervisor, add_json, add_results, add_run
from analysis.plan.design import PLAN_FILE, check_run_id

if TYPE_CHECKING:
    from analysis.records.placement import PlacementRecord
    from analysis.records.survey import SurveyRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_results(parser)
    add_run(parser, "the newest survey; with --proof every run")
    add_hypervisor(parser)
    parser.add_argument(
        "--proof", action="store_true", help="surveys of an experiment's cells beside what KSM then saved"
    )
    add_json(parser)
    parser.add_argument(
        "--prometheus",
        metavar="FILE",
        type=Path,
        help="write what each host saves for the textfile collector of node_exporter (FILE ends in .prom)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show surveys; 1 where a part of what was asked for cannot be read.

    Raises UserError or OSError with a text for the user.
    """
    if arguments.proof:
        return _prove(arguments)
    from analysis.report.placement import placement_content, placement_parts
    from analysis.report.quantities import MACHINE, SURVEY
    from analysis.report.summary import described
    from analysis.report.survey import hosts_part, survey_content, survey_parts
    from analysis.report.tables import Part, show

    records, placements, unread = read_surveys(stored(arguments.results, arguments.run, arguments.hypervisor))
    problems = [f"! {problem}" for problem in unread]
    if arguments.prometheus:
        _export(records, arguments.prometheus)
    if arguments.json:
        content = {
            "schema_version": 1,
            "quantities": described((*SURVEY, *MACHINE)),
            "surveys": [survey_content(record) for record in records],
            "moves": [move for placement in placements for move in placement_content(placement, records)],
            "problems": problems,
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return int(bool(problems))
    parts: list[Part] = [hosts_part(records)] if len(records) > 1 else []
    for placement in placements:
        parts += placement_parts(placement, records)
    for record in records:
        parts += survey_parts(record)
    if parts:
        show(*parts)
    if problems:
        print("\n".join(problems), file=sys.stderr)
    return int(bool(problems))


def _export(records: Sequence["SurveyRecord"], path: Path) -> None:
    """Write the textfile. Raises UserError where it would not be read, or the disk refuses."""
    from analysis.errors import UserError
    from analysis.records.writing import write_text
    from analysis.report.prometheus import exposition

    if path.suffix != ".prom":
        raise UserError(f"--prometheus is {path}: node_exporter reads files that end in .prom alone.")
    write_text(path, exposition(records))


def _prove(arguments: argparse.Namespace) -> int:
    """Show surveys of cells beside what KSM then saved; 1 where there is none."""
    from analysis.commands.choosing import chosen_runs
    from analysis.measure.foretold import foretold
    from analysis.report.foretold import foretold_content, foretold_parts
    from analysis.report.tables import show

    found = chosen_runs(
        arguments.results, arguments.run, everything=not arguments.run, hypervisor=arguments.hypervisor
    )
    lines, problems = foretold(found.runs)
    problems += found.problems
    if arguments.json:
        print(json.dumps(foretold_content(lines, problems), indent=2, ensure_ascii=False))
    else:
        show(*foretold_parts(lines, problems))
    return 0 if lines else 1


def read_surveys(
    paths: Sequence[Path],
) -> tuple[list["SurveyRecord"], list["PlacementRecord"], list[str]]:
    """The surveys in these files, the comparisons of hosts beside them, and why a file cannot be used."""
    from analysis.records.placement import FILE, PlacementRecord
    from analysis.records.reading import RecordError, read_record
    from analysis.records.survey import SurveyRecord

    records, placements, problems = [], [], []
    for path in sorted({path.parent.with_name(FILE) for path in paths}):
        try:
            placements += [read_record(path, PlacementRecord)] if path.exists() else []
        except RecordError as error:
            problems.append(str(error))
    for path in paths:
        try:
            records.append(read_record(path, SurveyRecord))
        except RecordError as error:
            problems.append(f"{path.parent.name}: {error}")
    return records, placements, problems


def stored(results: Path, run_ids: list[str] | None, hypervisor: str | None) -> list[Path]:
    """The files asked for, without ids those of the run that was written last. Raises RecordError."""
    from analysis.records.reading import RecordError
    from analysis.records.survey import FILE

    # An experiment's own are of its cells, one folder further down.
    depths = ("*",) if (results / PLAN_FILE).exists() else ("*", "*/*")
    paths = [path for depth in depths for path in sorted(results.glob(f"{depth}/{FILE}"))]
    if run_ids:
        wanted = {check_run_id(run_id) for run_id in run_ids}
        paths = [path for path in paths if wanted & set(path.parts)]
    elif paths:
        newest = max(paths, key=lambda path: path.stat().st_mtime).parent.parent
        paths = [path for path in paths if path.parent.parent == newest]
    if hypervisor is not None:
        paths = [path for path in paths if path.parent.name == hypervisor]
    if not paths:
        raise RecordError(
            f"there is no such survey in {results}: ansible-playbook playbooks/survey.yml -i HOSTS takes one."
        )
    return paths
