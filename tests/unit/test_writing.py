"""The one writer: what it refuses, and what it leaves when it is stopped."""

import errno
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from synthetic import synthetic_plan, synthetic_records

from analysis.records import writing
from analysis.records.models import PHASES, SnapshotRecord
from analysis.records.writing import WriteError, prepare_folder, write_record


def record() -> dict[str, Any]:
    plan = synthetic_plan()
    return synthetic_records(plan, plan.cells[0])["off"]


def test_a_record_is_private_and_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cell" / "off.json"
    write_record(path, record(), SnapshotRecord)
    assert json.loads(path.read_text()) == record()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in path.parents[:2]} == {0o700}
    assert list(path.parent.iterdir()) == [path]


def test_a_record_replaces_the_former_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "off.json"
    path.write_text("x" * 1_000_000)
    write_record(path, record(), SnapshotRecord)
    assert json.loads(path.read_text()) == record()


@pytest.mark.parametrize("kind", ["merge", "verify", "failed"])
def test_what_is_no_such_record_is_not_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.json"
    with pytest.raises(WriteError, match=rf"^{kind}\.json is not valid at \$\..+\.$"):
        write_record(path, record(), PHASES[kind])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}])
def test_what_is_no_json_is_not_written(tmp_path: Path, value: Any) -> None:
    content = {**record(), "monotonic_seconds": value}
    with pytest.raises(WriteError, match=r"^off\.json cannot be written as JSON"):
        write_record(tmp_path / "off.json", content, SnapshotRecord)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_leaves_the_former_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "off.json"
    write_record(path, record(), SnapshotRecord)

    def full(*_arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            full()
            return 0

    if call == "write":
        monkeypatch.setattr(writing.os, "fdopen", lambda descriptor, *_, **__: os.close(descriptor) or Full())
    else:
        monkeypatch.setattr({"fsync": writing.os, "replace": Path}[call], call, full)
    said = f"cannot write {path}: {os.strerror(code)}: make room there; what was written before is whole."
    with pytest.raises(WriteError, match=f"^{re.escape(said)}$"):
        write_record(path, {**record(), "run_id": "other"}, SnapshotRecord)
    monkeypatch.undo()
    assert json.loads(path.read_text()) == record()
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_write_left_blocks_no_retry_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "off.json"
    for left in (f".off.json.{os.getpid()}", ".off.json.0a1b2c3d"):
        (tmp_path / left).write_text('{"half')
    (tmp_path / ".on.json.0a1b2c3d").write_text("another's")
    write_record(path, record(), SnapshotRecord)
    assert sorted(left.name for left in tmp_path.iterdir()) == [".on.json.0a1b2c3d", "off.json"]


def test_a_folder_that_cannot_be_written_in_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=rf"^cannot write in {tmp_path}/file/cell: Not a directory\.$"):
        prepare_folder(tmp_path / "file" / "cell")
    prepare_folder(tmp_path / "cell")
    assert list((tmp_path / "cell").iterdir()) == []
