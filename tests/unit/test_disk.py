"""What a run is going to store, and what of it is there already."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planned import planned, play_action, variables
from plugin_files import load

from analysis.plan import disk
from analysis.plan.design import DesignError
from plugins.module_utils import disk_room

preflight = load("plugins/modules/host_preflight.py")
checkpoints = load("plugins/module_utils/checkpoints.py")
MIB = 1 << 20
CREATED = "2026-11-26T08:00:00.000000Z"


def kept(**design: Any) -> list[disk.Kept]:
    plan = planned(**design).to_json()
    cells = planned(**design).cells
    return disk.checkpoints(cells, max(cell.guests for cell in cells), plan["workloads"])


def test_each_boot_needs_a_checkpoint_and_each_load_that_is_kept_another_that_stands_on_it() -> None:
    found = kept(workloads="idle,random_fill", guests="4", boots=2, repetitions=3)
    assert sorted(found, key=lambda one: (one.boot, one.load)) == [
        disk.Kept(1, 4),
        disk.Kept(1, 4, "random_fill"),
        disk.Kept(2, 4),
        disk.Kept(2, 4, "random_fill"),
    ]
    for one in found:
        assert found.index(disk.Kept(one.boot, 4)) <= found.index(one)


def test_of_several_numbers_of_guests_each_that_is_larger_than_those_before_it_is_kept_loaded() -> None:
    plan = planned(workloads="random_fill", guests="2,4", repetitions=1)
    small, large = sorted(plan.cells, key=lambda cell: cell.guests)
    workloads = plan.to_json()["workloads"]

    def loaded(*cells: Any) -> list[int]:
        return [one.guests for one in disk.checkpoints(cells, 4, workloads) if one.load]

    assert loaded(small, large) == [2, 4]
    assert loaded(large, small) == [4]


def test_a_mix_serves_its_own_number_only() -> None:
    (cell,) = planned(mix="idle=1,random_fill=1", guests=2).cells
    assert kept(mix="idle=1,random_fill=1", guests=2) == [disk.Kept(1, 2), disk.Kept(1, 2, cell.workload)]


def test_the_needs_are_of_the_image_the_disks_and_each_checkpoint() -> None:
    design = planned(guest_memory_mib=512, checkpoint="fresh").design.to_json()
    image, overlays, booted, loaded = disk.host_needs(
        [disk.Kept(1, 15), disk.Kept(1, 15, "random_fill")], 15, design, CREATED, {"guests_directory": "/big"}
    )
    assert (image["path"], image["unless"]) == ("/var/lib/ksm-testbed/images", "*/image.json")
    assert (overlays["path"], overlays["bytes"]) == ("/big/guests", 15 * 64 * MIB)
    # 256 MiB and a sixteenth of 512 that booting touches, and 64 of disk; a load may touch all.
    assert (booted["path"], booted["bytes"]) == ("/big/checkpoints", 15 * (288 + 64) * MIB)
    assert loaded["bytes"] == 15 * (512 + 64) * MIB
    assert loaded["what"] == "boot 1 of 15 guests with random_fill"
    assert loaded["checkpoint"] == {
        "boot": 1,
        "guests": 15,
        "load": "random_fill",
        "memory_mib": 512,
        "reserve_mib": 40,
        "since": CREATED,
    }
    assert disk_room.saved_bytes(1, 128, loaded=False) == (128 + 64) * MIB


WANTED = {"boot": 1, "guests": 2, "memory_mib": 512, "reserve_mib": 40, "load": "", "since": ""}


def store(root: Path, guests: int = 2, load: dict[str, Any] | None = None, **made: Any) -> None:
    made_of = dict.fromkeys(checkpoints.MADE_OF, "x")
    made_of |= {"boot": 1, "memory_mib": 512, "kernel_release": checkpoints.os.uname().release, **made}
    name = checkpoints.folder_name(made_of, CREATED, load)
    folder = root / (name + checkpoints.UNFINISHED)
    for one in range(1, guests + 1):
        place = folder / f"guest{one:02d}"
        place.mkdir(parents=True)
        for file in checkpoints.FILES:
            (place / file).write_text(file)
    checkpoints.write(
        folder, made_of, (CREATED, 80.0), {f"guest{n:02d}": {} for n in range(1, guests + 1)}, load
    )


@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ({}, True),
        ({"guests": 1}, True),
        ({"guests": 3}, False),
        ({"boot": 2}, False),
        ({"memory_mib": 256}, False),
        ({"load": "random_fill"}, False),
        ({"since": CREATED}, True),
        ({"since": "2026-11-26T08:00:00.000001Z"}, False),
    ],
)
def test_a_checkpoint_that_is_there_needs_no_room(
    tmp_path: Path, changes: dict[str, Any], there: bool
) -> None:
    store(tmp_path)
    need = {"path": str(tmp_path), "bytes": 5, "what": "boot 1", "checkpoint": {**WANTED, **changes}}
    assert preflight.still_needed([need]) == ([] if there else [need])


def test_a_checkpoint_of_another_kernel_or_a_damaged_one_is_none(tmp_path: Path) -> None:
    store(tmp_path, kernel_release="another")
    need = {"path": str(tmp_path), "bytes": 5, "what": "boot 1", "checkpoint": WANTED}
    assert preflight.still_needed([need]) == [need]
    store(tmp_path)
    assert preflight.still_needed([need]) == []
    for manifest in tmp_path.glob("*/manifest.json"):
        manifest.write_text("{")
    assert preflight.still_needed([need]) == [need]


def test_loaded_guests_stand_on_those_of_their_boot(tmp_path: Path) -> None:
    load = {"name": "random_fill", "reserve_mib": 40, "reports": {"guest01": {}, "guest02": {}}}
    store(tmp_path, load=load)
    base = {"path": str(tmp_path), "bytes": 5, "what": "boot 1", "checkpoint": WANTED}
    loaded = {**base, "checkpoint": {**WANTED, "load": "random_fill"}}
    assert preflight.still_needed([base, loaded]) == [base, loaded]
    store(tmp_path)
    assert preflight.still_needed([base, loaded]) == []
    other = {**base, "checkpoint": {**WANTED, "load": "random_fill", "reserve_mib": 41}}
    assert preflight.still_needed([base, other]) == [other]


def test_an_image_that_is_there_needs_no_room(tmp_path: Path) -> None:
    need = {"path": str(tmp_path), "bytes": 5, "what": "image", "unless": "*/image.json"}
    assert preflight.still_needed([need]) == [need]
    (tmp_path / "bookworm-1").mkdir()
    (tmp_path / "bookworm-1/image.json").write_text("{}")
    assert preflight.still_needed([need]) == []


def test_records_that_do_not_fit_the_controller_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = disk.records_need(10, variables(follow_seconds=600), str(tmp_path / "results"))
    # A MiB, and 1500 samples, for each
    assert need["bytes"] == 10 * (MIB + 1500 * 300)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda _path: SimpleNamespace(free=need["bytes"] - 1))
    with pytest.raises(
        DesignError, match=r"15 MiB are to be stored there \(15 MiB for the records of 10 cells in "
    ):
        disk.check_records([need])
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda _path: SimpleNamespace(free=need["bytes"]))
    disk.check_records([need])


def test_the_plan_names_what_each_host_needs_and_the_records_where_it_is_the_controller(
    tmp_path: Path,
) -> None:
    task = {
        "plan": {
            "variables": variables(guests=2, focus=3),
            "hypervisors": ["localhost", "far"],
            "directory": str(tmp_path / "results"),
            "run_id": "one",
        },
        "check_mode": True,
    }
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/localhost.json").write_text('{"ansible_connection": "local"}')
    needs = play_action(tmp_path, task)["disk_needs"]
    what = ["making the guests' image", "what 2 guests write", "boot 1 of 2 guests"]
    assert [need["what"] for need in needs["far"]][:3] == what
    assert [need["what"] for need in needs["localhost"]] == [
        *(need["what"] for need in needs["far"]),
        "the records of 1 cells",
    ]
    assert not (tmp_path / "results").exists()
