#!/usr/bin/python3
"""Ansible module: the disk image that the guests' overlays stand on."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_image
short_description: Build or fetch the guests' image, cached by content
description:
  - With I(source=build), makes a Debian image with C(mmdebstrap) from the host's own mirror; it boots with
    its kernel and initrd.
  - With a path or an URL, takes an official cloud image whose SHA-512 is I(checksum); it boots from its disk.
    It must be a qcow2 image that is whole and not encrypted; its header is looked at before QEMU opens it.
  - An image that was made from the same inputs is reused; a half-made one is never left behind.
options:
  source: {description: C(build), or the path or URL of a qcow2 image, type: str, default: build}
  checksum:
    description: C(sha512:HEX) of a fetched image; needed unless I(source=build)
    type: str
    default: ""
  suite: {description: the Debian suite of a built image, type: str, default: bookworm}
  packages: {description: packages of a built image, type: list, elements: str, default: []}
  customize: {description: text of mmdebstrap's customize hook, type: str, default: ""}
  disk_mib: {description: size of a built image's disk, type: int, default: 1536}
  directory: {description: folder that keeps the images, type: path, required: true}
  progress_path: {description: file that takes one line for each step, type: path, default: ""}
"""

EXAMPLES = r"""
- name: Build the guests' image
  guest_image:
    directory: /var/lib/ksm-testbed/images
    packages: [linux-image-cloud-amd64, cloud-init, openssh-server, python3]
"""

RETURN = r"""
image:
  description:
    - disk, disk_bytes, digest (SHA-256 of the disk), source
    - kernel and initrd, null for an image that boots from its disk
  type: dict
  returned: success
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.disk_room import IMAGE_BYTES, Need, shortages
from ansible.module_utils.names import PACKAGE, PATH, SUITE, NameRefused
from ansible.module_utils.names import check as check_name
from ansible.module_utils.own_files import NotOwnError, is_own, mark, remove_own
from ansible.module_utils.progress import Progress, ProgressError

FORMAT = 1  # raised when the way an image is made changes, so that older ones are made anew
SHA512 = re.compile(r"(sha512:)?[0-9a-f]{128}")
# Magic, version, offset of the backing file's name, two sizes left out, crypt_method; in version 3
# incompatible_features (QEMU, docs/interop/qcow2.txt)
QCOW2_HEADER = struct.Struct(">4sIQ16xI")
QCOW2_FEATURES = struct.Struct(">72xQ")
EXTERNAL_DATA_FILE = 1 << 2


class ImageError(Exception):
    """The image can't be had; the text is one sentence for the user."""


def run(command: list[str]) -> str:
    """Run a command; its output, or an ImageError with the last lines of what it said."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ImageError(
            f"{command[0]} is not installed on this host; run the debian_host role first"
        ) from None
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise ImageError(f"{command[0]} failed with exit code {done.returncode}: {said}")
    return done.stdout


def digest_of(path: Path, algorithm: str) -> str:
    """Return `algorithm:hex` of a file's content."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def mirror_of_host(suite: str) -> str:
    """Return the Debian mirror that apt uses here for the main archive."""
    lines = run(
        ["apt-get", "indextargets", "--format", "$(SITE)|$(CODENAME)|$(ORIGIN)|$(COMPONENT)"]
    ).splitlines()
    sites = [line.split("|") for line in lines]
    debian = [
        site
        for site, codename, origin, component in sites
        if origin == "Debian" and component == "main" and not codename.endswith(("-security", "-updates"))
    ]
    exact = [site for site, codename, origin, _ in sites if origin == "Debian" and codename == suite]
    for site in exact + debian:
        return site
    raise ImageError(
        "apt on this host knows no mirror of Debian's main archive: add one, run apt-get update, "
        "or set image_source to an image"
    )


def cache_key(params: dict[str, Any]) -> str:
    """Return the folder name of an image made from these inputs."""
    inputs: dict[str, Any] = {"format": FORMAT, "source": params["source"]}
    if params["source"] == "build":
        inputs |= {name: params[name] for name in ("suite", "packages", "customize", "disk_mib")}
        label = params["suite"]
    else:
        inputs = {"format": FORMAT, "checksum": params["checksum"].removeprefix("sha512:")}
        label = "cloud"
    text = json.dumps(inputs, sort_keys=True)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check(params: dict[str, Any]) -> None:
    """Refuse what can't work, before anything is changed."""
    source, checksum = params["source"], params["checksum"]
    check_name("guest_image_directory", params["directory"], PATH)
    if source == "build":
        check_name("guest_image_suite", params["suite"], SUITE)
        for package in params["packages"]:
            check_name("guest_image_packages' part", package, PACKAGE)
        return
    if not SHA512.fullmatch(checksum):
        raise ImageError(
            f"image_checksum is {checksum!r}: "
            "an image by path or URL needs sha512: and 128 hexadecimal digits"
        )
    if "://" in source:
        if not source.startswith(("https://", "http://", "file://")):
            raise ImageError(f"image_source is {source!r}: of URLs only https, http and file are taken")
    elif not Path(source).is_file():
        raise ImageError(
            f"image_source is {source!r}: it is neither `build`, nor a URL, nor a file on this host"
        )


def build(params: dict[str, Any], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Make disk.qcow2, vmlinuz and initrd in `folder`."""
    hook = folder / "customize.sh"
    hook.write_text(params["customize"])
    hook.chmod(0o700)
    root, raw = folder / "root", folder / "disk.raw"
    mirror = mirror_of_host(params["suite"])
    say(f"building a Debian {params['suite']} image from {mirror}")
    run(
        [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            f"--include={','.join(params['packages'])}",
            '--aptopt=Apt::Install-Recommends "false"',
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            f"--customize-hook={hook}",
            params["suite"],
            str(root),
            mirror,
        ]
    )
    say("writing the image's disk")
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        found = sorted((root / "boot").glob(pattern))
        if len(found) != 1:
            raise ImageError(
                f"the built image has {len(found)} files boot/{pattern}, and must have one kernel"
            )
        shutil.copyfile(found[0], folder / name)
    with raw.open("wb") as file:
        file.truncate(params["disk_mib"] << 20)
    run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(raw)])
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(folder / "disk.qcow2")])
    raw.unlink()
    hook.unlink()
    shutil.rmtree(root)
    return {"kernel": "vmlinuz", "initrd": "initrd"}


def fault(path: Path) -> str:
    """What makes an image one to refuse, read from its header alone; empty where nothing does.

    QEMU, asked for the same, would open the other files that an image names (CVE-2024-4467).
    """
    with path.open("rb") as file:
        header = file.read(QCOW2_FEATURES.size)
    if len(header) < QCOW2_HEADER.size or not header.startswith(b"QFI\xfb"):
        return "is no qcow2 image"
    _, version, backing, crypt_method = QCOW2_HEADER.unpack_from(header)
    if version not in (2, 3) or len(header) < QCOW2_FEATURES.size:
        return f"is a qcow2 image of version {version}, which is none of today's"
    if backing:
        return "stands on another file (it has a backing file)"
    if version == 3 and QCOW2_FEATURES.unpack(header)[0] & EXTERNAL_DATA_FILE:
        return "keeps its content in another file (it has an external data file)"
    return "is encrypted" if crypt_method else ""


def fetch(params: dict[str, Any], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Take an official image into `folder` and hold it against its checksum."""
    source, target = params["source"], folder / "fetched"
    say(f"fetching {source}")
    if "://" in source:
        try:
            with urllib.request.urlopen(source, timeout=60) as answer, target.open("wb") as file:  # noqa: S310
                shutil.copyfileobj(answer, file, 1 << 20)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise ImageError(f"image_source {source!r} can't be fetched: {error}") from None
    else:
        shutil.copyfile(source, target)
    got = digest_of(target, "sha512")
    if got.removeprefix("sha512:") != params["checksum"].removeprefix("sha512:"):
        raise ImageError(f"image_checksum does not fit {source!r}: wanted {params['checksum']}, got {got}")
    wrong = fault(target)
    if wrong:
        raise ImageError(f"image_source {source!r} {wrong}: give a whole qcow2 image, not encrypted")
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(target), str(folder / "disk.qcow2")])
    target.unlink()
    return {"kernel": None, "initrd": None}


def read(folder: Path) -> dict[str, Any] | None:
    """Return the image kept in `folder`, or None where it is missing or not whole."""
    try:
        image: dict[str, Any] = json.loads((folder / "image.json").read_text())
        names = [image["disk"], *(image[name] for name in ("kernel", "initrd") if image[name])]
        if (
            all((folder / name).is_file() for name in names)
            and (folder / image["disk"]).stat().st_size == image["disk_bytes"]
        ):
            return {
                **image,
                **{name: str(folder / image[name]) for name in ("disk", "kernel", "initrd") if image[name]},
            }
    except (OSError, ValueError, KeyError):
        pass
    return None


def make(params: dict[str, Any], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Make the image beside its final place and move it there whole."""
    parent = folder.parent
    parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    if folder.exists() and not is_own(folder):
        raise ImageError(f"{folder} is no whole image, and has no mark of the testbed's: move it away")
    for stale in parent.glob(".making-*"):
        if is_own(stale):
            remove_own(stale, stale)
    wrong = shortages([Need(path=str(parent), bytes=IMAGE_BYTES, what="making the guests' image")])
    if wrong:
        raise ImageError(wrong[0])
    working = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    try:
        mark(working)
        working.chmod(0o755)  # mmdebstrap's apt user has to pass
        boot = (build if params["source"] == "build" else fetch)(params, working, say)
        say("taking the image's digest")
        disk = working / "disk.qcow2"
        image = {
            "disk": disk.name,
            **boot,
            "source": params["source"],
            "disk_bytes": disk.stat().st_size,
            "digest": digest_of(disk, "sha256"),
        }
        (working / "image.json").write_text(json.dumps(image, indent=1) + "\n")
        working.chmod(0o711)
        remove_own(folder, folder)
        working.rename(folder)
    finally:
        remove_own(working, working)
    made = read(folder)
    if made is None:
        raise ImageError(f"the image in {folder} is not whole right after it was made")
    return made


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "default": "build"},
            "checksum": {"type": "str", "default": ""},
            "suite": {"type": "str", "default": "bookworm"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "customize": {"type": "str", "default": ""},
            "disk_mib": {"type": "int", "default": 1536},
            "directory": {"type": "path", "required": True},
            "progress_path": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    params["checksum"] = params["checksum"].strip().lower()
    try:
        check(params)
        progress = Progress(None if module.check_mode else params["progress_path"])
        folder = Path(params["directory"]) / cache_key(params)
        kept = read(folder)
        if kept is not None:
            module.exit_json(changed=False, image=kept)
        if module.check_mode:
            module.exit_json(
                changed=True,
                image={
                    "disk": str(folder / "disk.qcow2"),
                    "kernel": None,
                    "initrd": None,
                    "source": params["source"],
                    "digest": "unknown: not made yet",
                },
            )
        os.umask(0o022)
        module.exit_json(changed=True, image=make(params, folder, progress.say))
    except (ImageError, NameRefused, NotOwnError, ProgressError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
