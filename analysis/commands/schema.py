"""The JSON Schema of every stored file, as the models define it.

example: python -m analysis schema --out schema
"""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="write <kind>.schema.json there (default: print one object)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the schemas by kind, or write a file for each. Raises OSError."""
    from analysis.records import placement, survey
    from analysis.records.models import RECORDS, json_schemas

    schemas = json_schemas(
        {**RECORDS, survey.KIND: survey.SurveyRecord, placement.KIND: placement.PlacementRecord}
    )
    if arguments.out is None:
        print(json.dumps(schemas, indent=2))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    for kind, schema in schemas.items():
        path = arguments.out / f"{kind}.schema.json"
        path.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
    print(f"Written to {arguments.out}: {len(schemas)} schemas.")
    return 0
