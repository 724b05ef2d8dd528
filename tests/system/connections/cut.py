"""Ansible's local connection, on which nothing goes through while a file is there: a network that is cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as LocalConnection

DOCUMENTATION = """
name: cut
short_description: The local connection, cut while the file of KSM_TESTBED_CUT is there
description: For tests of a hypervisor that the controller cannot reach any more.
author: KSM testbed
options:
  become_success_timeout: {type: int, default: 10, description: as of the connection local}
  become_strip_preamble: {type: bool, default: true, description: as of the connection local}
extends_documentation_fragment:
  - connection_pipelining
"""


class Connection(LocalConnection):  # type: ignore[misc]
    """What was begun on the host goes on there, as under a daemon of SSH."""

    transport = "cut"

    def exec_command(self, *arguments: Any, **options: Any) -> Any:
        """Run a command."""
        self._reach()
        return super().exec_command(*arguments, **options)

    def put_file(self, *arguments: Any) -> None:
        """Copy a file to the host."""
        self._reach()
        super().put_file(*arguments)

    def fetch_file(self, *arguments: Any) -> None:
        """Copy a file from the host."""
        self._reach()
        super().fetch_file(*arguments)

    def _reach(self) -> None:
        if Path(os.environ["KSM_TESTBED_CUT"]).exists():
            raise AnsibleConnectionFailure("the network is cut")
