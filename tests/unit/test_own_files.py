"""What the modules remove as root: only what lies in a folder that the testbed made, links followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from plugin_files import load

own_files = load("plugins/module_utils/own_files.py")
VARIABLE = "some_directory"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "testbed/own"
    own_files.make_own(folder, 0o711, VARIABLE)
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    return tmp_path / "mine"


def test_what_was_made_is_own_and_goes_with_all_that_is_in_it(own: Path) -> None:
    assert stat.S_IMODE(own.stat().st_mode) == 0o711 and own_files.is_own(own)
    (own / "some/folder").mkdir(parents=True)
    (own / "file").touch()
    for name in ("some", "file", "nothing"):
        own_files.remove_own(own / name, own)
    assert [path.name for path in own.iterdir()] == [own_files.MARK]
    own_files.remove_own(own, own)
    assert not own.exists()


def test_it_can_be_made_again_and_an_empty_folder_is_taken(own: Path, tmp_path: Path) -> None:
    own_files.make_own(own, 0o700, VARIABLE)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    (tmp_path / "empty").mkdir()
    own_files.make_own(tmp_path / "empty", 0o711, VARIABLE)
    assert own_files.is_own(tmp_path / "empty")


def test_what_was_there_before_is_not_taken(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for place in (mine, mine / "file", tmp_path / "link"):
        with pytest.raises(own_files.NotOwnError, match=f"did not make it .*, or set {VARIABLE}"):
            own_files.make_own(place, 0o711, VARIABLE)
        assert not own_files.is_own(place)


def test_what_is_not_marked_is_not_removed(mine: Path) -> None:
    for path in (mine, mine / "file"):
        with pytest.raises(own_files.NotOwnError, match="is left alone: the testbed did not make"):
            own_files.remove_own(path, mine)
    assert (mine / "file").exists()


@pytest.mark.parametrize("way", ["../../mine", "..", "../own/../../mine/file", "link/file", "link/../mine"])
def test_nothing_outside_is_removed_whatever_the_way_to_it(own: Path, mine: Path, way: str) -> None:
    (own / "link").symlink_to(mine)
    with pytest.raises(own_files.NotOwnError, match="is left alone: it is "):
        own_files.remove_own(own / way, own)
    assert (mine / "file").exists() and own.exists()


def test_a_link_goes_and_what_it_names_stays(own: Path, mine: Path) -> None:
    (own / "link").symlink_to(mine)
    own_files.remove_own(own / "link", own)
    assert not os.path.lexists(own / "link") and (mine / "file").exists()


def test_a_link_to_an_own_folder_is_not_own(own: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(own)
    with pytest.raises(own_files.NotOwnError):
        own_files.remove_own(tmp_path / "link", tmp_path / "link")
    assert own_files.is_own(own)


def test_the_testbeds_folder_may_itself_be_a_link_to_a_larger_disk(own: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(own.parent)
    (own / "file").touch()
    own_files.remove_own(tmp_path / "linked/own/file", tmp_path / "linked/own")
    assert not (own / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_a_mark_that_another_user_made_is_none(mine: Path) -> None:
    (mine / own_files.MARK).touch()
    os.chown(mine / own_files.MARK, 65534, 65534)
    assert not own_files.is_own(mine)


def test_a_mark_that_is_a_link_is_none(mine: Path, own: Path) -> None:
    (mine / own_files.MARK).symlink_to(own / own_files.MARK)
    assert not own_files.is_own(mine)
