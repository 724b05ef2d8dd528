"""What the system tests share: guests that boot once, in the checkpoint that every run restores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from this_host import GUESTS, MEMORY_MIB, Cells, State, cells, left, playbook, state, succeeded


@pytest.fixture(scope="session")
def before() -> State:
    """The host before any run."""
    return state()


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("results")
    playbook(name="teardown.yml")


@pytest.fixture(scope="session")
def proof(results: Path, before: State) -> Cells:
    """Idle guests measured in the processes that booted, and once more when they were restored."""
    size = {"guests": GUESTS, "guest_memory_mib": MEMORY_MIB}
    asked = {**size, "focus": 1, "checkpoint": "measured", "repetitions": 2, "run_id": "proof"}
    output = succeeded(playbook(results_directory=str(results), **asked))
    assert f"booting {GUESTS} guests" not in output
    assert f"guest{GUESTS:02d} is up" in output
    assert left(before) == []
    return cells(results / "proof")
