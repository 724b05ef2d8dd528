"""Load a role's module or plugin for a unit test, or run a module as Ansible does."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils

ROOT = Path(__file__).parents[2]
# Runs a module with the shared module_utils, as Ansible ships them with it.
RUN = (
    "import runpy, sys, ansible.module_utils;"
    "path, shared = sys.argv[1:]; sys.argv = [path];"
    "ansible.module_utils.__path__.append(shared);"
    "runpy.run_path(path, run_name='__main__')"
)


def load(path: str) -> ModuleType:
    """Load a Python file of the repository under a name of its own: a module and its action share theirs."""
    shared = str(ROOT / "plugins/module_utils")
    if shared not in ansible.module_utils.__path__:
        ansible.module_utils.__path__.append(shared)
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(path: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run a module as a process with JSON arguments."""
    process = subprocess.run(
        [sys.executable, "-c", RUN, ROOT / path, ROOT / "plugins/module_utils"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout, process.stderr
    result: dict[str, Any] = json.loads(process.stdout)
    return result
