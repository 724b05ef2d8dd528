"""Answers from the records, and the measurement itself: `python -m analysis COMMAND`.

exit code:
  0    answered; of run: everything that was planned is measured
  1    nothing could be answered, or a part of it failed
  2    a mistake in the command or its input, said in one sentence
  3    check: a saving is worse than the baseline's
  4    check: it cannot be told whether one is
  130  ended by Ctrl-C
`python -m analysis COMMAND --help` has an example of each.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from analysis.errors import UserError

# Each is a module of analysis.commands with add_arguments(parser) and run(arguments) -> exit code; its
# docstring, the help of the command, ends with an example.
COMMANDS = {
    "summarize": "what was measured: memory freed, used and saved, beside the paper's figures",
    "explain": "where the saving comes from: item by item, scan by scan, guest by guest",
    "compare": "two runs or campaigns: what differs, with intervals",
    "check": "whether a saving is worse than a baseline's, by exit code",
    "policies": "policies side by side: saved, how soon, and what ksmd took",
    "recommend": "which policy for a goal, and what it loses against the best",
    "forecast": "memory of N guests, and how many fit",
    "report": "all that is known of runs or surveys, as one page; forecasts beside what came of them",
    "survey": "hosts as they are: what KSM would save, what it saves, how many more machines fit",
    "census": "equal pages within and between the running guests, and the ideal saving",
    "quantities": "what each number is, its unit and its source",
    "schema": "the JSON Schema of every stored file",
    "run": "measure, and prove that every planned record exists",
}
INTERRUPTED = 130

_HELP = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The command line; only the command that these words name is imported."""
    main_parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description=__doc__,
        formatter_class=_HELP,
    )
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=_HELP)
        if name == next(iter(words), None):
            module = import_module(f"analysis.commands.{name}")
            command.description = module.__doc__
            command.set_defaults(run_command=module.run)
            module.add_arguments(command)
    return main_parser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; a mistake of the user's is one sentence and exit code 2."""
    words = sys.argv[1:] if words is None else words
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without "±" gets "?" and no traceback.
        sys.stdout.reconfigure(errors="replace")
    arguments = parser(words).parse_args(words, argparse.Namespace(words=words))
    try:
        return int(arguments.run_command(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        # The reader of a pipe has gone; the interpreter would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
