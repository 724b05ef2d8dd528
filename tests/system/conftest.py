"""What the system tests share: guests that boot once, in the checkpoint that every run restores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from this_host import GUESTS, MEMORY_MIB, Cells, cells, knobs, playbook, succeeded


@pytest.fixture(scope="session")
def before() -> dict[str, str]:
    """The host's KSM settings before any run."""
    return knobs()


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("results")
    playbook(name="teardown.yml")


@pytest.fixture(scope="session")
def proof(results: Path, before: dict[str, str]) -> Cells:
    """Idle guests measured in the processes that booted, and once more when they were restored."""
    size = {"guests": GUESTS, "guest_memory_mib": MEMORY_MIB}
    asked = {**size, "focus": 1, "checkpoint": "measured", "repetitions": 2, "run_id": "proof"}
    output = succeeded(playbook(results_directory=str(results), **asked))
    assert f"booting {GUESTS} guests" not in output
    assert f"guest{GUESTS:02d} is up" in output
    assert knobs() == before
    return cells(results / "proof")
