"""SSH to the guests: only the host keys that the testbed itself gave them are trusted. Standard library only.

Three files in the guests' folder, private to root: the key that opens them, their host keys, and how each is
reached: `ssh -F /var/lib/ksm-testbed/guests/ssh_config guest01`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ansible.module_utils.names import HOST_KEY, check
from ansible.module_utils.private_file import put

CONFIG = """\
Host *
    HostName 127.0.0.1
    User root
    BatchMode yes
    ConnectTimeout 30
    IdentityFile {key}
    IdentitiesOnly yes
    StrictHostKeyChecking yes
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile /dev/null
    UpdateHostKeys no
"""


class GuestSsh:
    """The files of one folder."""

    def __init__(self, folder: Path, port_of: Callable[[str], int]) -> None:
        """Name the folder, and what gives a guest's port of 127.0.0.1."""
        self.key = folder / "id_ed25519"
        self.known_hosts = folder / "known_hosts"
        self.config = folder / "ssh_config"
        self.port_of = port_of

    def write_key(self, private_key: str) -> None:
        """Write the key that opens the guests."""
        put(self.key, private_key)

    def host_keys(self) -> dict[str, str]:
        """Guest name -> its host key, of all that are trusted."""
        try:
            lines = self.known_hosts.read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return {}
        return {name: key for name, _, key in (line.partition(" ") for line in lines)}

    def trust(self, host_keys: Mapping[str, str]) -> None:
        """Trust these host keys, in place of those that the same guests had. Raises NameRefused."""
        for name, key in host_keys.items():
            check(f"the host key of {name}", key, HOST_KEY)
        known = {**self.host_keys(), **host_keys}
        # By the guest's name: other guests have had the same port.
        put(self.known_hosts, "".join(f"{name} {key}\n" for name, key in known.items()))
        hosts = "".join(
            f"Host {name}\n    Port {self.port_of(name)}\n    HostKeyAlias {name}\n" for name in known
        )
        put(self.config, hosts + CONFIG.format(key=self.key, known_hosts=self.known_hosts))

    def command(self, name: str, *words: str) -> list[str]:
        """The command that runs words in a guest."""
        return ["ssh", "-F", str(self.config), name, *words]
