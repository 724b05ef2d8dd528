"""Sketches of hosts' contents while a playbook runs: in its own temporary folder, which ends with it.

Hashes are in no result, log or record. All hosts of a survey get one seed, which is as short-lived.
"""

import base64
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ansible import constants

from analysis.measure.placement import Sketch
from plugins.module_utils.private_file import put

SEED_BITS = 64
SEED = "survey-seed"
SKETCH = "survey-sketch-"


def _folder() -> Path:
    """Ansible's folder of this run on the controller, 0700, removed when it ends, however it ends."""
    return Path(constants.DEFAULT_LOCAL_TMP)


def common_seed() -> str:
    """The seed of this run, hexadecimal; made by the host that asks first."""
    path = _folder() / SEED
    mine = path.with_name(f"{SEED}.{os.getpid()}")
    put(mine, f"{secrets.randbits(SEED_BITS):x}")
    with suppress(FileExistsError):
        path.hardlink_to(mine)
    mine.unlink()
    return path.read_text(encoding="ascii")


def keep_sketch(hypervisor: str, sketch: Mapping[str, Any]) -> None:
    """Keep the sketch of a host as the module survey returns it."""
    put(_folder() / f"{SKETCH}{hypervisor}", json.dumps(sketch))


def take_sketches() -> tuple[int, list[Sketch]]:
    """Of how many contents one is in the sketches, and these, host by host; they are removed."""
    found, one_in = [], 1
    for path in sorted(_folder().glob(f"{SKETCH}*")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        one_in = kept["one_in"]
        found += [
            Sketch(path.name.removeprefix(SKETCH), int(pid), np.frombuffer(base64.b64decode(text), "<u8"))
            for pid, text in kept["machines"].items()
        ]
    return one_in, found
