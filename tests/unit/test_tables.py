"""Tables: nothing is ever cut, a pipe gets plain text, a terminal its own width."""

import os
import pty
import subprocess
import sys

import pytest

from analysis.plan.design import PROJECT
from analysis.report.tables import PROSE_WIDTH, heading, markdown, notes, render, table

WIDE = table(
    ["workload", *(f"quantity {n}\nMB/VM" for n in range(20))],
    [["1 idle", *(f"{n}98.8 ± 0.6" for n in range(20))], ["mix: idle=5,random_fill=10", *["-"] * 20]],
)


def test_plain_text_is_as_wide_as_the_table_needs() -> None:
    lines = render(WIDE).splitlines()
    assert lines[0].split()[-2:] == ["quantity", "19"]
    assert lines[1].split()[:2] == ["workload", "MB/VM"]
    (row,) = (line for line in lines if line.startswith("1 idle"))
    assert row.split("  ")[-1].strip() == "1998.8 ± 0.6"
    assert all(f"{n}98.8 ± 0.6" in row for n in range(20))
    assert "…" not in render(WIDE)


@pytest.mark.parametrize("width", [10, 20, 30, 40, 80])
def test_a_narrow_place_continues_below_and_loses_nothing(width: int) -> None:
    small = table(["load", "freed\nMB/VM", "gross"], [["constant fill", "98.8 ± 0.6", "101.25 ± 12.75"]])
    text = render(small, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert sorted(filter(str.isdigit, text)) == sorted("98806101251275")


def test_columns_that_do_not_fit_go_below_with_their_names() -> None:
    small = table(["load", "freed\nMB/VM", "gross"], [["constant", "98.8 ± 0.6", "1.2 ± 0.1"]], title="Saved")
    # The names take 8 and 2, the columns 10 and 9 and 2 between them.
    assert "constant  98.8 ± 0.6  1.2 ± 0.1" in render(small, width=31)
    lines = render(small, width=30).splitlines()
    assert [line for line in lines if line.startswith("constant")] == [
        "constant  98.8 ± 0.6",
        "constant  1.2 ± 0.1",
    ]
    assert lines.count("Saved") == 1


def test_names_stand_left_and_numbers_right() -> None:
    lines = render(table(["a", "b", "c"], [["x", "y", "1"], ["xxx", "yyy", "100"]], names=2)).splitlines()
    assert lines[2:] == ["x    y      1", "xxx  yyy  100"]


def test_sentences_are_broken_and_brackets_are_no_markup() -> None:
    text = render("[bold] " + "word " * 60, notes(["! [red]left out", "word " * 60]))
    assert max(map(len, text.splitlines())) <= PROSE_WIDTH
    assert text.startswith("[bold] word")
    assert "\n! [red]left out\n- word word" in text
    assert text.splitlines()[-1].startswith("  word")


def shown_on(width: int | None) -> str:
    """What another process prints of the wide table on a terminal of this width, or into a pipe."""
    code = (
        "from test_tables import WIDE; from analysis.report.tables import notes, show;"
        "show(WIDE, notes(['! x']))"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment = {**kept, "TERM": "xterm-256color", "PYTHONPATH": f"{PROJECT}:{PROJECT}/tests/unit"}
    if width is None:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code], env={**environment, "COLUMNS": str(width)}, stdout=theirs, check=True
    )
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 65536):
            text += piece
    except OSError:
        pass  # the terminal's end
    os.close(ours)
    return text.decode()


def test_a_pipe_gets_every_cell_and_no_colour() -> None:
    text = shown_on(None)
    assert "\x1b" not in text
    assert text == render(WIDE, notes(["! x"]))


def test_a_terminal_gets_colours_and_its_width() -> None:
    text = shown_on(300)
    assert "\x1b[33m" in text
    assert "…" not in shown_on(100)


def test_markdown_has_pipe_tables_whose_cells_hold_what_they_hold() -> None:
    small = table(["load", "freed\nMB/VM"], [["a|b", "98.8 ± 0.6"]], title="Saved")
    assert markdown(heading("host1"), "Run a\non a machine", small, notes(["! mind", "this"])) == (
        "## host1\n\nRun a  \non a machine\n\n"
        "**Saved**\n\n| load | freed<br>MB/VM |\n| :--- | ---: |\n| a\\|b | 98.8 ± 0.6 |\n\n"
        "- ! mind\n- this\n"
    )
