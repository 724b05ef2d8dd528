"""What runs, hosts, cells, guests and domains may be called: names become paths, XML, YAML and shell words.

Standard library only: the modules on the hypervisor and the analysis on the controller share it.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.etree import ElementTree

METADATA_URI = "urn:ksm-testbed"


class NameRefused(ValueError):  # noqa: N818 -- what became of the name
    """A name that could be more than a name; the text is one sentence without its full stop."""


class Rule(NamedTuple):
    """A pattern for the whole of a name, and the words for what it allows."""

    pattern: re.Pattern[str]
    allowed: str


RUN = Rule(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
    "1 to 64 letters, digits, dots, underscores and hyphens, a letter or digit first",
)
# A hypervisor in the inventory, a cell: folders of a run
PLACE = Rule(
    re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"),
    "1 to 200 letters, digits, dots, underscores and hyphens, no dot or hyphen first",
)
# A policy, a workload: the names of their files
DATA_FILE = Rule(
    re.compile(r"[a-z][a-z0-9_-]{0,31}"),
    "1 to 32 small letters, digits, hyphens and underscores, a letter first",
)
GUEST = Rule(re.compile(r"guest[0-9]{2,3}"), "guest and its number, such as guest01")
DOMAIN = Rule(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"),
    "1 to 100 letters, digits, dots, underscores and hyphens, a letter or digit first",
)
# A folder or a partition that stands in XML and in SSH's own files
PATH = Rule(
    re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._-]+)+"),
    "an absolute path of letters, digits, dots, underscores and hyphens, without . and .. as a part",
)
HOST_KEY = Rule(re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}"), "a public key of ed25519 without comment")
SUITE = Rule(re.compile(r"[a-z][a-z0-9.-]{0,39}"), "small letters, digits, dots and hyphens, a letter first")
PACKAGE = Rule(
    re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}(:[a-z0-9-]+)?"), "names of Debian packages, a version left out"
)


def check(what: str, name: str, rule: Rule) -> str:
    """Return the name that fits the rule. Raises NameRefused, which calls it what."""
    if not rule.pattern.fullmatch(name):
        raise NameRefused(f"{what} is {name!r}: allowed is {rule.allowed}")
    return name


def guest_of(xml: str) -> str | None:
    """Return the guest that this testbed's metadata in a domain's XML names; None: somebody else's domain."""
    node = ElementTree.fromstring(xml).find(f"metadata/{{{METADATA_URI}}}guest")  # noqa: S314 -- libvirt's own
    name = "" if node is None else node.get("name", "")
    return name if GUEST.pattern.fullmatch(name) else None
