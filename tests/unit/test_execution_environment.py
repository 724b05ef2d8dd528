"""The image for AWX has the versions that `make setup` installs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", ["ansible_core", "ansible_runner"])
def test_what_the_image_is_built_with_is_pinned_as_everywhere(part: str) -> None:
    built = yaml.safe_load((ROOT / "execution-environment.yml").read_text())["dependencies"][part]
    pinned = [
        line.split()[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line
    ]
    assert built["package_pip"] in pinned
