"""Guests with another size of memory than those measured: what is told of them, and where nothing can be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import MIB, PAGE
from synthetic_capacity import TRUTH, Truth, store_numbers, used_mib

from analysis.__main__ import main
from analysis.model.resizing import resized
from analysis.model.scoring import USED
from analysis.model.sharing import HOST, SHARING, Model, Sample, SharingError, fit, naive, predict

FILLS: dict[str, dict[str, float]] = {
    "idle": {},
    "constant_fill": {"constant": 1.0},
    "random_fill": {"random": 1.0},
}


def smaller(workload: str) -> Truth:
    """Of guests of 384 MiB by hand: 2 MiB less of struct pages, 126 less of a fill, KSM's own for these."""
    known = TRUTH[workload]
    fill = 126 if FILLS[workload] else 0
    return replace(
        known,
        per_guest=known.per_guest - 2 - fill,
        within=known.within - (fill * 255 / 256 if workload == "constant_fill" else 0),
        ksm=known.ksm - (2 + fill) / 64,
    )


def model(memory_mib: int = 512) -> Model:
    samples = []
    for workload, truth in TRUTH.items():
        for guests in (2, 4, 6):
            off, on, gross = used_mib(truth, guests)
            own = guests * (truth.per_guest - 19)
            parts = (off, on, own, own - gross - guests * truth.uncounted, gross, guests * truth.ksm)
            filled = 382.0 * MIB if FILLS[workload] else 0.0
            samples.append(
                Sample(workload, guests, "boot 1", *(part * MIB for part in parts), filled_bytes=filled)
            )
    return fit(
        samples,
        name=SHARING,
        scope=HOST,
        guest_memory_bytes=memory_mib * MIB,
        page_size_bytes=PAGE,
        max_page_sharing=256,
    )


@pytest.mark.parametrize("workload", list(TRUTH))
def test_a_smaller_guest_has_the_same_system_and_a_smaller_fill(workload: str) -> None:
    found = resized(model(), 384 * MIB, FILLS)
    off, on, gross = used_mib(smaller(workload), 20)
    seen = predict(found, {workload: 20})
    assert seen.off.mean_bytes / MIB == pytest.approx(off, rel=1e-6)
    assert seen.on.mean_bytes / MIB == pytest.approx(on, rel=1e-6)
    assert seen.gross.mean_bytes / MIB == pytest.approx(gross, rel=1e-6)
    assert seen.off.half_width_bytes == predict(model(), {workload: 20}).off.half_width_bytes
    # 128 MiB less of it, and of KSM's own 2.
    safe = predict(model(), {workload: 20}).safe_bytes - 20 * 130 * MIB
    assert seen.safe_bytes == pytest.approx(safe, rel=1e-3)
    # At the largest N that was measured the naive answer is right.
    _off, on, _gross = used_mib(smaller(workload), 6)
    assert naive(found, {workload: 6}).constant_saving / MIB == pytest.approx(on, rel=1e-6)


def test_what_all_guests_fill_alike_is_shared_between_them() -> None:
    found = resized(model(), 384 * MIB, {**FILLS, "idle": {"shared": 0.5}})
    before, after = (predict(one, {"idle": 20}).gross.mean_bytes / MIB for one in (model(), found))
    assert after - before == pytest.approx(-63 * 19)


@pytest.mark.parametrize(
    ("measured", "asked", "words"),
    [
        (512, 640, "above 512 MiB a guest's kernel turns huge pages on"),
        (640, 512, "above 512 MiB a guest's kernel turns huge pages on"),
        (512, 256, "what these hold beside a fill, 288 MiB, would not fit"),
    ],
)
def test_where_the_system_would_not_be_the_same_nothing_is_told(
    measured: int, asked: int, words: str
) -> None:
    with pytest.raises(SharingError, match=words):
        resized(model(memory_mib=measured), asked * MIB, FILLS)


def test_a_forecast_of_smaller_guests_is_scored_by_cells_of_them(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    store_numbers(results, (2, 4, 6))
    path = results / "forecasts/smaller.json"
    words = ["forecast", "--results", str(results), "--guests", "6,12", "--guest-memory-mib", "384"]
    assert main([*words, "--out", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "How many guests of 384 MiB fit" in text
    assert "from 9 measured cells of guests of 512 MiB, 1 boot" in text
    assert "Guests of 384 MiB are told from guests of 512 MiB: their system holds as much" in text
    design: dict[str, Any] = {"design": {"guest_memory_mib": 384}}
    store_numbers(
        results, (12,), forecasts=[path], recorded_at="2099-01-01T00:00:00",
        truth={name: smaller(name) for name in TRUTH}, **design,
    )  # fmt: skip
    assert main(["report", "--results", str(results), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["scored"] == 3
    assert abs(found["scores"][0]["all"][USED]["used_on"]["worst"]) < 1e-4
