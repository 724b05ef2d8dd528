"""Checkpoints on plain files: which one serves, what is wrong with the others, what is removed."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from plugin_files import load

checkpoints = load("plugins/module_utils/checkpoints.py")
MADE_OF = {
    "image": "sha256:1",
    "definition": "d1",
    "user_data": "u1",
    "memory_mib": 512,
    "kernel_release": "6.1.0-30-amd64",
    "cpu_model": "Some CPU",
    "qemu_version": "7.2.22",
    "boot": 1,
}
EARLIER, LATER = "2026-11-26T08:00:00.000000Z", "2026-11-26T09:00:00.000000Z"
LOAD = {"name": "random_fill", "reserve_mib": 32, "reports": {"guest01": {"digest": "a"}}}
CONTENT = {"memory": b"memory of ", "disk.qcow2": b"disk of ", "seed.iso": b"seed of "}
NAMES = ("guest01", "guest02")


class Kept:
    """A store and what it said."""

    def __init__(self, root: Path) -> None:
        self.lines: list[str] = []
        self.store = checkpoints.Store(root, self.lines.append)

    def unfinished(self, made_of: Mapping[str, Any], booted_at: str, load_: Any, names: Any) -> Path:
        name = checkpoints.folder_name(made_of, booted_at, load_)
        folder: Path = self.store.root / (name + checkpoints.UNFINISHED)
        for guest in names:
            (folder / guest).mkdir(parents=True)
            for file, content in CONTENT.items():
                (folder / guest / file).write_bytes(content + guest.encode())
        return folder

    def make(self, booted_at: str = EARLIER, *, load: Any = None, names: Any = NAMES, **changes: Any) -> Any:
        made_of = {**MADE_OF, **changes}
        folder = self.unfinished(made_of, booted_at, load, names)
        boots = {name: {"seconds": 20.0, "cpu_seconds": 21.5, "host_key": "k"} for name in names}
        return checkpoints.write(folder, made_of, (booted_at, 85.5), boots, load)

    def find(self, guests: int = 2, since: str = "", **changes: Any) -> Any:
        self.lines.clear()
        return self.store.find({**MADE_OF, **changes}, guests, since)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.store.root.iterdir())


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    (tmp_path / "checkpoints").mkdir()
    return Kept(tmp_path / "checkpoints")


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change a manifest."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_kept_is_found_again_with_all_that_is_known_of_it(kept: Kept) -> None:
    made = kept.make()
    found = kept.find()
    assert found == made
    assert (found.booted_at, found.boot_seconds, found.load) == (EARLIER, 85.5, None)
    assert found.guests["guest02"]["cpu_seconds"] == 21.5
    assert found.bytes == sum(len(content) + 7 for content in CONTENT.values()) * 2
    assert checkpoints.fault(found, NAMES) == ""
    assert kept.lines == []
    assert kept.names == [found.name]


def test_its_files_are_private(kept: Kept) -> None:
    made = kept.make()
    files = [path for path in made.folder.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_store_and_its_folders_are_private_and_the_owners(kept: Kept) -> None:
    kept.store.root.rmdir()
    for path in (kept.store.root, kept.store.root / "boot1-512mib-0123456789ab.partial"):
        kept.store.make_folder(path, (os.geteuid(), os.getegid()))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    kept.store.make_folder(kept.store.root, (os.geteuid(), os.getegid()))


def test_a_store_that_is_not_there_yet_has_nothing(tmp_path: Path) -> None:
    assert Kept(tmp_path / "none").find() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel_release": "6.1.0-31-amd64"}, "host kernel 6.1.0-30-amd64, now 6.1.0-31-amd64"),
        ({"qemu_version": "7.2.23"}, "QEMU 7.2.22, now 7.2.23"),
        ({"cpu_model": "Other CPU"}, "host CPU Some CPU, now Other CPU"),
        (
            {"kernel_release": "6.12", "qemu_version": "10.0.2"},
            "host kernel 6.1.0-30-amd64, now 6.12 and QEMU 7.2.22, now 10.0.2",
        ),
    ],
)
def test_what_was_made_on_another_host_is_thrown_away_and_the_difference_named(
    kept: Kept, changes: dict[str, Any], said: str
) -> None:
    made = kept.make()
    assert kept.find(**changes) is None
    assert kept.lines == [f"checkpoint {made.name} is thrown away: it was made with {said}"]
    assert kept.names == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "sha256:2"}, "another image"),
        ({"definition": "d2"}, "another domain definition"),
        ({"user_data": "u2", "image": "sha256:2"}, "another image and another user data or SSH key"),
    ],
)
def test_what_was_made_of_something_else_does_not_serve_and_is_kept(
    kept: Kept, changes: dict[str, Any], said: str
) -> None:
    made = kept.make()
    assert kept.find(**changes) is None
    assert kept.lines == [f"checkpoint {made.name} does not serve: {said}"]
    assert kept.find() == made


@pytest.mark.parametrize("changes", [{"memory_mib": 1024}, {"boot": 2}])
def test_guests_of_another_size_or_boot_are_neither_taken_nor_named(
    kept: Kept, changes: dict[str, Any]
) -> None:
    made = kept.make()
    assert kept.find(**changes) is None
    assert kept.lines == [] and kept.names == [made.name]


def test_nothing_is_said_of_the_others_where_one_serves(kept: Kept) -> None:
    kept.make(image="sha256:0")
    assert kept.find() is None and len(kept.lines) == 1
    made = kept.make(LATER)
    assert kept.find() == made and kept.lines == []


def test_the_newest_serves(kept: Kept) -> None:
    kept.make(EARLIER)
    newer = kept.make(LATER)
    assert kept.find() == newer


def test_a_checkpoint_older_than_the_run_does_not_serve_one_that_asks_for_a_fresh_boot(kept: Kept) -> None:
    made = kept.make(EARLIER)
    assert kept.find(since="2026-11-26T08:00:00.000001Z") is None
    assert kept.lines == [f"checkpoint {made.name} is older than this run, which asks for a fresh boot"]
    assert kept.find(since=EARLIER) == made


def test_more_guests_than_a_checkpoint_holds_are_not_served_and_the_numbers_are_said(kept: Kept) -> None:
    made = kept.make()
    assert kept.find(3) is None
    assert kept.lines == [f"checkpoint {made.name} holds 2 guests, and 3 are asked for"]
    assert kept.find(1) == kept.find(2) == made


def truncate(folder: Path) -> None:
    path = folder / "guest02/memory"
    path.write_bytes(path.read_bytes()[:-1])


def overwrite(folder: Path) -> None:
    path = folder / "guest02/disk.qcow2"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    assert path.stat().st_size == len(content)


def link_file(folder: Path) -> None:
    path = folder / "guest02/seed.iso"
    path.rename(folder / "aside")
    path.symlink_to(folder / "aside")


def link_guest(folder: Path) -> None:
    (folder / "guest02").rename(folder / "aside")
    (folder / "guest02").symlink_to(folder / "aside")


def pipe(folder: Path) -> None:
    (folder / "guest02/memory").unlink()
    os.mkfifo(folder / "guest02/memory")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "guest02/memory has 16 bytes of 17"),
        (overwrite, "guest02/disk.qcow2 was changed: its digest is another"),
        (lambda made: (made / "guest02/seed.iso").unlink(), "guest02/seed.iso: No such file or directory"),
        (link_file, "guest02/seed.iso: it is a symbolic link"),
        (link_guest, "it has no folder guest02"),
        (pipe, "guest02/memory: it is no file"),
    ],
)
def test_a_damaged_file_is_named_and_only_where_its_guest_is_wanted(
    kept: Kept, damage: Callable[[Path], None], said: str
) -> None:
    made = kept.make()
    damage(made.folder)
    assert checkpoints.fault(made, NAMES) == said
    assert checkpoints.fault(made, ["guest01"]) == ""


def test_what_was_read_for_its_digest_leaves_the_hosts_cache(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.write(bytes(4 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def cached_bytes() -> int:
        command = ["fincore", "--bytes", "--noheadings", "--output", "RES", path]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    if cached_bytes():
        pytest.skip("this filesystem is nothing but cache")
    path.read_bytes()
    assert cached_bytes() == 4 << 20
    checkpoints.measured(path)
    assert cached_bytes() == 0


def test_a_guest_that_is_not_in_the_manifest_is_a_fault(kept: Kept) -> None:
    made = kept.make(names=("guest01", "guest03"))
    assert checkpoints.fault(made, NAMES) == "it has no guest02"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "it has no manifest, so it was never finished"),
        (lambda path: path.write_text("{"), "its manifest cannot be read (Expecting property name"),
        (lambda path: path.write_text("[]"), "its manifest cannot be read (list indices must be"),
        (lambda path: path.write_bytes(b"\xff"), "its manifest cannot be read ("),
        (lambda path: path.write_text("[" * 100_000), "its manifest cannot be read ("),
        (lambda path: path.write_text("{}"), "its manifest cannot be read ('schema_version')"),
        (
            lambda path: path.rename(path.with_name("m")) and path.symlink_to(path.with_name("m")),
            "its manifest cannot be read (Too many levels of symbolic links)",
        ),
        (
            lambda path: edit(path.parent, lambda content: content.update(schema_version=9)),
            "its manifest is of version 9",
        ),
        (
            lambda path: edit(path.parent, lambda content: content.update(guests={})),
            "its manifest names no guests, or empty files",
        ),
        (
            lambda path: edit(path.parent, lambda content: content["made_of"].pop("image")),
            "its manifest cannot be read ('image')",
        ),
        (
            lambda path: edit(path.parent, lambda content: content.update(booted_at=5)),
            "its manifest cannot be read (5 in it is of no use)",
        ),
        (
            lambda path: edit(path.parent, lambda content: content["guests"]["guest02"].pop("host_key")),
            "its manifest cannot be read ('host_key')",
        ),
        (
            lambda path: edit(path.parent, lambda content: content.update(boot_seconds="long")),
            "its manifest cannot be read ('long' in it is of no use)",
        ),
        (
            lambda path: edit(path.parent, lambda content: content.update(load={"name": "random_fill"})),
            "its manifest cannot be read ('reserve_mib')",
        ),
        (
            lambda path: edit(path.parent, lambda content: content.update(booted_at=LATER)),
            "its manifest is that of boot1-512mib-",
        ),
    ],
)
def test_a_checkpoint_without_a_sound_manifest_is_none_and_is_thrown_away(
    kept: Kept, damage: Callable[[Path], None], said: str
) -> None:
    made = kept.make()
    damage(made.folder / "manifest.json")
    assert kept.find() is None
    (line,) = kept.lines
    assert line.startswith(f"checkpoint {made.name} is thrown away: {said}")
    assert kept.names == []


@pytest.mark.parametrize(("field", "value"), [("bytes", 0), ("bytes", True), ("bytes", ""), ("digest", 1)])
def test_a_file_that_a_manifest_does_not_describe_makes_it_unsound(
    kept: Kept, field: str, value: Any
) -> None:
    made = kept.make()
    edit(made.folder, lambda content: content["guests"]["guest01"]["files"]["memory"].update({field: value}))
    assert kept.find() is None
    assert "its manifest" in kept.lines[0] and kept.names == []


def test_what_was_never_finished_is_thrown_away_even_with_a_manifest(kept: Kept) -> None:
    made = kept.make()
    made.folder.rename(made.folder.with_name(f"{made.name}.partial"))
    assert kept.find() is None
    assert kept.lines == [f"checkpoint {made.name}.partial is thrown away: it was never finished"]
    assert kept.names == []


@pytest.mark.parametrize(
    "name", ["lost+found", "backup", "boot1-512mib-0123456789ab-copy", "boot1-512mib", "my.partial", "a.txt"]
)
def test_what_the_testbed_did_not_make_is_left_alone_and_can_be_named(kept: Kept, name: str) -> None:
    folder = kept.store.root / name
    folder.mkdir()
    (folder / "precious").touch()
    assert kept.find() is None
    assert kept.lines == [] and (folder / "precious").exists()
    assert kept.store.strangers() == [name]
    assert kept.store.folders() == []


def test_a_link_of_a_checkpoints_name_is_not_followed(kept: Kept, tmp_path: Path) -> None:
    made = kept.make()
    elsewhere = tmp_path / "elsewhere"
    made.folder.rename(elsewhere)
    (elsewhere / "manifest.json").write_text("{}")
    made.folder.symlink_to(elsewhere)
    assert kept.find() is None
    assert kept.lines == [] and kept.store.strangers() == [made.name]
    assert (elsewhere / "manifest.json").exists() and (elsewhere / "guest01/memory").exists()
    with pytest.raises(checkpoints.CheckpointError, match="is a symbolic link, and is left alone: remove it"):
        kept.store.make_folder(made.folder, (os.geteuid(), os.getegid()))


def test_removing_follows_no_link_that_stands_in_a_checkpoint(kept: Kept, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("!")
    made = kept.make()
    (made.folder / "link").symlink_to(outside)
    assert checkpoints.size_bytes(made.folder) < 5000
    checkpoints.remove(made.folder)
    assert kept.names == [] and (outside / "precious").exists()


def test_the_store_itself_may_be_a_link_to_a_larger_disk(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "large")
    kept = Kept(tmp_path / "checkpoints")
    kept.store.make_folder(kept.store.root, (os.geteuid(), os.getegid()))
    made = kept.make()
    assert kept.find() == made and (tmp_path / "large" / made.name).is_dir()


def test_a_file_that_is_a_link_is_not_kept(kept: Kept, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("!")
    secret.chmod(0o644)
    folder = kept.unfinished(MADE_OF, EARLIER, None, NAMES)
    (folder / "guest01/seed.iso").unlink()
    (folder / "guest01/seed.iso").symlink_to(secret)
    with pytest.raises(checkpoints.CheckpointError, match=r"cannot be kept: seed\.iso: Too many levels"):
        checkpoints.write(folder, MADE_OF, (EARLIER, 1.0), {name: {} for name in NAMES}, None)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o644


def test_a_full_disk_is_said_in_one_sentence(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept.unfinished(MADE_OF, EARLIER, None, NAMES)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(checkpoints.CheckpointError) as refused:
        checkpoints.write(folder, MADE_OF, (EARLIER, 1.0), {name: {} for name in NAMES}, None)
    assert str(refused.value) == f"checkpoint {folder.name} cannot be kept: No space left on device"
    assert kept.find() is None and kept.names == []


def test_what_cannot_be_removed_is_said_and_is_no_checkpoint_any_more(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kept.make()

    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path / "guest01"))

    monkeypatch.setattr(checkpoints.shutil, "rmtree", refuse)
    with pytest.raises(checkpoints.CheckpointError) as refused:
        checkpoints.remove(made.folder)
    assert str(refused.value) == (
        f"checkpoint {made.name} cannot be removed: {made.folder}/guest01: Device or resource busy"
    )
    with pytest.raises(checkpoints.CheckpointError, match="it has no manifest"):
        checkpoints.read(made.folder)


@pytest.mark.parametrize("name", ["mine", "boot1-512mib-0123456789ab.copy", ".."])
def test_what_is_not_called_as_a_checkpoint_is_not_removed(kept: Kept, name: str) -> None:
    (kept.store.root / "mine/guest01").mkdir(parents=True)
    with pytest.raises(checkpoints.CheckpointError, match="is left alone: the testbed did not make it"):
        checkpoints.remove(kept.store.root / name)
    assert kept.names == ["mine"]


def test_a_link_called_as_a_checkpoint_is_not_followed_when_it_is_to_be_removed(
    kept: Kept, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/manifest.json").write_text("{}")
    link = kept.store.root / "boot1-512mib-0123456789ab"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(checkpoints.CheckpointError, match="is left alone"):
        checkpoints.remove(link)
    assert (tmp_path / "elsewhere/manifest.json").exists()


# Guests that were loaded since


def test_loaded_guests_of_the_same_boot_are_found_by_what_they_hold(kept: Kept) -> None:
    base = kept.make()
    loaded = kept.make(load=LOAD)
    assert loaded.name.startswith(f"{base.name}-random_fill-")
    assert kept.find() == base
    find = kept.store.find_loaded
    assert find(base, {"name": "random_fill", "reserve_mib": 32}, 2) == loaded
    assert find(base, {"name": "random_fill", "reserve_mib": 32}, 1) == loaded
    assert find(base, {"name": "random_fill", "reserve_mib": 32}, 3) is None
    assert find(base, {"name": "random_fill", "reserve_mib": 64}, 2) is None
    assert find(base, {"name": "constant_fill", "reserve_mib": 32}, 2) is None


def test_guests_that_hold_other_contents_under_the_name_of_a_load_are_not_those_asked_for(kept: Kept) -> None:
    """Such as those loaded before the workload's file was changed."""
    base = kept.make()
    contents = {"random_fill": [{"content": "random", "percent": 100}]}
    changed = {"random_fill": [{"content": "random", "percent": 50}, {"content": "zero", "percent": 50}]}
    former, new = (kept.make(load={**LOAD, "contents": held}) for held in (contents, changed))
    asked = {"name": "random_fill", "reserve_mib": 32}
    assert kept.store.find_loaded(base, {**asked, "contents": contents}, 2) == former
    assert kept.store.find_loaded(base, {**asked, "contents": changed}, 2) == new
    assert kept.store.find_loaded(base, {**asked, "contents": {}}, 2) is None


def test_loaded_guests_of_another_boot_are_not_those_asked_for(kept: Kept) -> None:
    kept.make(EARLIER)
    kept.make(EARLIER, load=LOAD)
    newer = kept.make(LATER)
    assert kept.store.find_loaded(newer, {"name": "random_fill", "reserve_mib": 32}, 2) is None
    other = kept.make(EARLIER, boot=2)
    assert kept.store.find_loaded(other, {"name": "random_fill", "reserve_mib": 32}, 2) is None


def test_of_a_mix_the_very_number_of_guests_is_needed(kept: Kept) -> None:
    base = kept.make()
    mix = {**LOAD, "name": "idle=1,random_fill=1"}
    loaded = kept.make(load=mix)
    assert kept.store.find_loaded(base, mix, 2) == loaded
    assert kept.store.find_loaded(base, mix, 1) is None


def test_loaded_guests_whose_base_is_gone_are_thrown_away(kept: Kept) -> None:
    base, loaded = kept.make(), kept.make(load=LOAD)
    checkpoints.remove(base.folder)
    assert kept.find() is None
    assert kept.lines == [
        f"checkpoint {loaded.name} is thrown away: its disks stand on {base.name}, which is gone"
    ]
    assert kept.names == []


def test_a_base_that_is_thrown_away_takes_the_loaded_guests_with_it(kept: Kept) -> None:
    base = kept.make()
    kept.make(load=LOAD)
    (base.folder / "manifest.json").unlink()
    assert kept.find() is None
    assert [line.partition(":")[2] for line in kept.lines] == [
        " it has no manifest, so it was never finished",
        f" its disks stand on {base.name}, which is gone",
    ]
    assert kept.names == []


def test_all_that_stands_on_a_checkpoint_is_known_by_its_name_and_nothing_else(kept: Kept) -> None:
    base, other = kept.make(EARLIER), kept.make(LATER)
    loaded = kept.make(EARLIER, load=LOAD)
    assert kept.store.with_loaded(base) == [loaded.folder, base.folder]
    assert kept.store.with_loaded(other) == [other.folder]


def test_a_new_checkpoint_takes_the_place_of_those_of_its_make_even_where_the_clock_went_back(
    kept: Kept,
) -> None:
    kept.make(LATER)
    kept.make(LATER, load=LOAD)
    others = [kept.make(LATER, boot=2), kept.make(LATER, image="sha256:2")]
    made = kept.make(EARLIER)
    kept.lines.clear()
    kept.store.drop_superseded(made)
    assert kept.names == sorted(one.name for one in (made, *others))
    assert [line.partition(":")[2] for line in kept.lines] == [f" {made.name} is in its place"] * 2


def test_each_difference_makes_another_name() -> None:
    names = {checkpoints.folder_name(MADE_OF, EARLIER, None), checkpoints.folder_name(MADE_OF, LATER, None)}
    for name in MADE_OF:
        names.add(checkpoints.folder_name({**MADE_OF, name: 7}, EARLIER, None))
    for change in ({"name": "idle=1,random_fill=1"}, {"reserve_mib": 1}, {"reports": {"guest02": {}}}):
        names.add(checkpoints.folder_name(MADE_OF, EARLIER, {**LOAD, **change}))
    assert len(names) == 2 + len(MADE_OF) + 3
    assert all(checkpoints.NAME.fullmatch(name) for name in names)
