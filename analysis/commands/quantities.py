"""What each number is: name, unit, the sentence that explains it, and the counters that it comes from.

example: python -m analysis quantities gross_mib_per_vm used_on_mib
"""

import argparse
import json

from analysis.commands.options import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="these alone (default: all)")
    form = parser.add_mutually_exclusive_group()
    add_json(form)
    form.add_argument("--markdown", action="store_true", help="print docs/quantities.md")


def run(arguments: argparse.Namespace) -> int:
    """Print the registry of quantities. Raises UserError for a name that is not in it."""
    from analysis.errors import UserError
    from analysis.report.dictionary import dictionary_parts, markdown
    from analysis.report.quantities import QUANTITIES
    from analysis.report.summary import described
    from analysis.report.tables import show

    unknown = [name for name in arguments.names if name not in QUANTITIES]
    if unknown:
        raise UserError(f"{', '.join(unknown)} is no quantity: there are {', '.join(QUANTITIES)}.")
    names = arguments.names or list(QUANTITIES)
    if arguments.markdown:
        print(markdown(), end="")
    elif arguments.json:
        print(json.dumps(described(names), indent=2, ensure_ascii=False))
    else:
        show(*dictionary_parts(names))
    return 0
