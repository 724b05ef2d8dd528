"""The module guest_image: its cache, and taking a tiny image by path, file URL and HTTP."""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plugin_files import ROOT, load, run

MODULE = "plugins/modules/guest_image.py"
guest_image = load(MODULE)
BUILD = {
    "source": "build",
    "checksum": "",
    "suite": "bookworm",
    "packages": ["python3", "lz4"],
    "customize": "true\n",
    "disk_mib": 1536,
}
DIGITS = "ab" * 64


class Image:
    """A tiny qcow2 image and the call that takes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "tiny.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.path, "1M"], check=True)
        self.checksum = hashlib.sha512(self.path.read_bytes()).hexdigest()
        self.images = folder / "images"

    def take(self, *, check: bool = False, **changes: Any) -> dict[str, Any]:
        arguments = {"source": str(self.path), "checksum": self.checksum, "directory": str(self.images)}
        return run(MODULE, check=check, **{**arguments, **changes})

    def refusal(self, **changes: Any) -> str:
        result = self.take(**changes)
        assert result.get("failed"), result
        message = str(result["msg"])
        assert "\n" not in message and "Traceback" not in message
        assert self.kept() == []
        return message

    def kept(self) -> list[str]:
        return sorted(path.name for path in self.images.iterdir()) if self.images.exists() else []


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


@pytest.fixture
def web(image: Image) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(image.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "trixie"},
        {"packages": ["python3"]},
        {"packages": ["lz4", "python3"]},
        {"customize": "false\n"},
        {"disk_mib": 2048},
        {"source": "/a.qcow2", "checksum": DIGITS},
    ],
)
def test_every_input_of_a_built_image_changes_its_key(change: dict[str, Any]) -> None:
    assert guest_image.cache_key({**BUILD, **change}) != guest_image.cache_key(BUILD)


def test_nothing_else_changes_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = guest_image.cache_key(BUILD)
    assert key.startswith("bookworm-")
    assert (
        guest_image.cache_key({**BUILD, "directory": "/elsewhere", "progress_path": "/p", "checksum": "x"})
        == key
    )
    fetched = guest_image.cache_key({**BUILD, "source": "/a.qcow2", "checksum": DIGITS})
    other = {
        "source": "https://b.example/c.qcow2",
        "checksum": f"sha512:{DIGITS}",
        "suite": "trixie",
        "packages": [],
    }
    assert guest_image.cache_key({**BUILD, **other}) == fetched
    monkeypatch.setattr(guest_image, "FORMAT", guest_image.FORMAT + 1)
    assert guest_image.cache_key(BUILD) != key


def test_an_image_by_path_is_taken_once(image: Image) -> None:
    foreseen = image.take(check=True)
    assert foreseen["changed"] and image.kept() == []
    taken = image.take()
    assert taken["changed"]
    made = taken["image"]
    disk = Path(made["disk"])
    assert made["digest"] == "sha256:" + hashlib.sha256(disk.read_bytes()).hexdigest()
    assert made["kernel"] is None and made["initrd"] is None
    assert sorted(path.name for path in disk.parent.iterdir()) == [
        ".ksm-testbed",
        "disk.qcow2",
        "image.json",
    ]
    again = image.take(checksum=f"SHA512:{image.checksum.upper()}")
    assert not again["changed"] and again["image"] == made


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_an_image_by_url_is_taken(image: Image, web: str, scheme: str) -> None:
    url = image.path.as_uri() if scheme == "file" else f"{web}/tiny.qcow2"
    taken = image.take(source=url)
    assert taken["changed"] and taken["image"]["source"] == url
    assert not image.take()["changed"]  # the same content by path


def test_an_image_that_was_cut_off_is_made_anew(image: Image) -> None:
    disk = Path(image.take()["image"]["disk"])
    disk.write_bytes(b"short")
    assert image.take()["changed"]
    assert disk.stat().st_size > 100_000


def test_what_a_killed_run_left_is_cleared_away(image: Image) -> None:
    left = image.images / ".making-killed"
    (left / "root").mkdir(parents=True)
    (left / ".ksm-testbed").touch()
    mine = image.images / ".making-music"
    mine.mkdir()
    (mine / "song").touch()
    assert image.take()["changed"]
    assert not left.exists() and (mine / "song").exists()
    assert len(image.kept()) == 2


def test_what_stands_in_an_images_place_and_is_not_the_testbeds_is_left(image: Image) -> None:
    folder = Path(image.take()["image"]["disk"]).parent
    (folder / ".ksm-testbed").unlink()
    assert not image.take()["changed"]  # whole, and only read
    (folder / "disk.qcow2").write_bytes(b"mine")
    message = image.take()["msg"]
    assert message == f"{folder} is no whole image, and has no mark of the testbed's: move it away"
    assert (folder / "disk.qcow2").read_bytes() == b"mine"


def test_content_that_does_not_fit_its_checksum_is_refused(image: Image) -> None:
    message = image.refusal(checksum=DIGITS)
    assert message == (
        f"image_checksum does not fit {str(image.path)!r}: wanted {DIGITS}, got sha512:{image.checksum}"
    )


@pytest.mark.parametrize("checksum", ["", "sha256:" + "0" * 64, "0" * 127, "xyz"])
def test_an_image_without_its_sha512_is_refused(image: Image, checksum: str) -> None:
    assert image.refusal(checksum=checksum).endswith(
        "an image by path or URL needs sha512: and 128 hexadecimal digits"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nowhere/a.qcow2", "it is neither `build`, nor a URL, nor a file on this host"),
        ("ftp://a.example/b.qcow2", "of URLs only https, http and file are taken"),
        ("file:///nowhere/a.qcow2", "can't be fetched: "),
        ("http://127.0.0.1:1/a.qcow2", "can't be fetched: "),
        ("http://a b/", "can't be fetched: "),
        ("http://", "can't be fetched: "),
    ],
)
def test_a_source_that_cannot_be_had_is_refused(image: Image, source: str, said: str) -> None:
    message = image.refusal(source=source)
    assert message.startswith("image_source ") and repr(source) in message and said in message


def test_a_missing_page_is_refused(image: Image, web: str) -> None:
    assert "HTTP Error 404" in image.refusal(source=f"{web}/nothing.qcow2")


REFUSED = {
    "backing": (["-F", "qcow2", "-b", "BASE"], "stands on another file (it has a backing file)"),
    "backing, version 2": (
        ["-F", "qcow2", "-b", "BASE", "-o", "compat=0.10"],
        "stands on another file (it has a backing file)",
    ),
    "data file": (
        ["-o", "data_file=DATA"],
        "keeps its content in another file (it has an external data file)",
    ),
    "aes": (["--object", "secret,id=s,data=abc", "-o", "encryption=on,encrypt.key-secret=s"], "is encrypted"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_image_that_is_not_all_there_or_encrypted_is_refused(image: Image, kind: str) -> None:
    options, said = REFUSED[kind]
    source = image.folder / "source.qcow2"
    words = [word.replace("BASE", str(image.path)).replace("DATA", f"{source}.data") for word in options]
    create = ["qemu-img", "create", "-q", "-f", "qcow2", *words, source, "1M"]
    subprocess.run(create, check=True, capture_output=True)
    message = image.refusal(source=str(source), checksum=hashlib.sha512(source.read_bytes()).hexdigest())
    assert message == f"image_source {str(source)!r} {said}: give a whole qcow2 image, not encrypted"


def test_an_image_that_is_encrypted_with_luks_is_refused(image: Image) -> None:
    """By its header: to make one qemu-img times its CPU, which QEMU 7.2 cannot on each machine."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image.path, "1M"], check=True)
    with image.path.open("r+b") as file:
        file.seek(32)
        file.write((2).to_bytes(4, "big"))  # crypt_method
    message = image.refusal(checksum=hashlib.sha512(image.path.read_bytes()).hexdigest())
    assert message.endswith(" is encrypted: give a whole qcow2 image, not encrypted")


@pytest.mark.parametrize("options", [[], ["-o", "compat=0.10"], ["-o", "compression_type=zstd"]])
def test_an_image_of_another_version_is_taken(image: Image, options: list[str]) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, image.path, "1M"], check=True)
    assert image.take(checksum=hashlib.sha512(image.path.read_bytes()).hexdigest())["changed"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no qcow2 image"),
        (b"\0" * 512, "is no qcow2 image"),
        (b"KDMV" + b"\0" * 508, "is no qcow2 image"),
        (b"QFI\xfb", "is no qcow2 image"),
        (b"QFI\xfb\0\0\0\4" + b"\0" * 504, "is a qcow2 image of version 4, which is none of today's"),
        (b"QFI\xfb\0\0\0\3" + b"\0" * 40, "is a qcow2 image of version 3, which is none of today's"),
    ],
)
def test_another_kind_of_file_is_refused_and_no_format_is_guessed(
    image: Image, content: bytes, said: str
) -> None:
    source = image.folder / "source"
    source.write_bytes(content)
    assert said in image.refusal(source=str(source), checksum=hashlib.sha512(content).hexdigest())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suite": "../../etc"}, "guest_image_suite is '../../etc': allowed is small letters"),
        ({"suite": "--hook"}, "guest_image_suite is '--hook': allowed is small letters"),
        ({"packages": ["python3", "a;b"]}, "guest_image_packages' part is 'a;b': allowed is names of Debian"),
        ({"directory": "/srv/a<b"}, "guest_image_directory is '/srv/a<b': allowed is an absolute path"),
    ],
)
def test_what_is_more_than_a_name_is_refused(image: Image, change: dict[str, Any], said: str) -> None:
    assert image.refusal(**{"source": "build", **change}).startswith(said)


def test_qemu_is_always_told_the_format() -> None:
    for path in (*ROOT.glob("plugins/**/*.py"), *ROOT.glob("roles/*/tasks/*.yml")):
        for line in path.read_text().replace("\n            [", " [").splitlines():
            if '"qemu-img"' in line:
                assert '"-f", ' in line, f"{path}: {line}"


def test_too_little_space_is_refused(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {**BUILD, "source": str(image.path), "checksum": image.checksum}
    free = guest_image.IMAGE_BYTES - 1
    monkeypatch.setattr(guest_image.shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    said = "has 4095 MiB free, and 4096 MiB are to be stored there .4096 MiB for making the guests' image in "
    with pytest.raises(guest_image.ImageError, match=said):
        guest_image.make(params, image.images / "key", print)
    assert image.kept() == []


def test_a_build_that_fails_leaves_nothing(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str]) -> str:
        if command[0] == "mmdebstrap":
            raise guest_image.ImageError("mmdebstrap failed with exit code 25: no mirror")
        return ""

    monkeypatch.setattr(guest_image, "run", fail)
    with pytest.raises(guest_image.ImageError, match="no mirror"):
        guest_image.make(BUILD, image.images / "key", lambda _line: None)
    assert image.kept() == []


@pytest.mark.parametrize(
    ("lines", "mirror"),
    [
        (
            "https://m.example/debian|trixie|Debian|main\nhttps://m.example/debian|bookworm|Debian|main\n"
            "https://s.example/security|bookworm-security|Debian|main\n",
            "https://m.example/debian",
        ),
        (
            "https://s.example/security|trixie-security|Debian|main\nhttps://d.example/docker|bookworm|Docker|stable\n"
            "https://n.example/debian|trixie|Debian|main\n",
            "https://n.example/debian",
        ),
    ],
)
def test_a_built_image_comes_from_the_mirror_of_the_host(
    monkeypatch: pytest.MonkeyPatch, lines: str, mirror: str
) -> None:
    monkeypatch.setattr(guest_image, "run", lambda _command: lines)
    assert guest_image.mirror_of_host("bookworm") == mirror


def test_a_host_without_a_debian_mirror_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        guest_image, "run", lambda _command: "https://d.example/docker|bookworm|Docker|stable\n"
    )
    with pytest.raises(guest_image.ImageError, match="knows no mirror"):
        guest_image.mirror_of_host("bookworm")


def test_services_of_applications_are_off_and_their_folders_for_logs_come_again_at_each_boot(
    tmp_path: Path,
) -> None:
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    timers = tmp_path / "etc/systemd/system/timers.target.wants"
    for folder in (wants, timers, tmp_path / "etc/tmpfiles.d", tmp_path / "var/log/nginx"):
        folder.mkdir(parents=True)
    for link in (
        wants / "nginx.service",
        wants / "ssh.service",
        timers / "fstrim.timer",
        timers / "phpclean.timer",
    ):
        link.symlink_to("/lib/systemd/system/unit")
    (tmp_path / "var/log/nginx").chmod(0o750)
    subprocess.run(["sh", ROOT / "roles/guest_image/files/applications.sh", tmp_path], check=True)
    assert [link.name for link in wants.iterdir()] == ["ssh.service"]
    assert [link.name for link in timers.iterdir()] == ["fstrim.timer"]
    owner = (tmp_path / "var/log/nginx").stat()
    line = f'd "/var/log/nginx" 750 {owner.st_uid} {owner.st_gid}\n'
    assert (tmp_path / "etc/tmpfiles.d/testbed-logs.conf").read_text() == line
