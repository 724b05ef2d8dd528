"""libvirt and QEMU as the module guests sees them, in plain files. Nothing runs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

INTERNAL_ERROR, OPERATION_TIMEOUT = 1, 68


class LibvirtError(Exception):
    """What libvirt raises."""

    def __init__(self, text: str, code: int = INTERNAL_ERROR) -> None:
        super().__init__(text)
        self.code = code

    def get_error_code(self) -> int:
        return self.code


LIBVIRT = SimpleNamespace(
    libvirtError=LibvirtError,
    VIR_DOMAIN_SAVE_BYPASS_CACHE=1,
    VIR_DOMAIN_SAVE_IMAGE_XML_SECURE=1,
    VIR_ERR_OPERATION_TIMEOUT=OPERATION_TIMEOUT,
)


class Domain:
    """A domain that runs; a saved or destroyed one is known no more."""

    def __init__(self, host: Host, xml: str) -> None:
        self.host = host
        self.xml = xml
        self.persistent = False

    @property
    def files(self) -> list[str]:
        """Paths of its disks."""
        root = ElementTree.fromstring(self.xml)  # noqa: S314 -- the module's own
        return [source.get("file", "") for source in root.iter("source") if source.get("file")]

    def name(self) -> str:
        found = re.search(r"<name>(.*)</name>", self.xml)
        assert found
        return found.group(1)

    def XMLDesc(self) -> str:  # noqa: N802 -- libvirt's name
        self._known()
        return self.xml

    def isActive(self) -> bool:  # noqa: N802
        self._known()
        return True

    def isPersistent(self) -> bool:  # noqa: N802
        self._known()
        return self.persistent

    def memoryStats(self) -> dict[str, int]:  # noqa: N802
        self._known()
        return {"rss": self.host.resident_kib}

    def destroy(self) -> None:
        self._known()
        if self.name() in self.host.immortal:
            raise LibvirtError("failed to kill: Device or resource busy")
        if self.host.busy.get(self.name(), 0):
            self.host.busy[self.name()] -= 1
            raise LibvirtError(
                "Timed out during operation: cannot acquire state change lock", OPERATION_TIMEOUT
            )
        self.host.gone(self)

    def undefine(self) -> None:
        self.persistent = False

    def saveFlags(self, path: str, dxml: None, flags: int) -> None:  # noqa: N802
        self._known()
        assert dxml is None and flags == 1
        if self.name() in self.host.unsaved:
            Path(path).write_text("half")
            raise LibvirtError("operation failed: No space left on device")
        Path(path).write_text(self.xml)
        self.host.gone(self)

    def _known(self) -> None:
        if self not in self.host.running:
            raise LibvirtError("Domain not found: no domain with matching name")


class Host:
    """The connection to libvirt; the sets name domains with which something goes wrong."""

    resident_kib = 100 << 10

    def __init__(self) -> None:
        self.running: list[Domain] = []
        self.lock = threading.Lock()
        self.qemu_version = 7_002_022
        self.booted: list[str] = []
        self.restored: list[str] = []
        self.most_at_once = 0
        self.immortal: set[str] = set()
        self.busy: dict[str, int] = {}  # how often it is not to be had
        self.unsaved: set[str] = set()
        self.refused: set[str] = set()
        self.short_lived: set[str] = set()
        self.at_start: Callable[[Domain], None] = lambda _domain: None

    def names(self) -> list[str]:
        return sorted(domain.name() for domain in self.running)

    def gone(self, domain: Domain) -> None:
        with self.lock:
            self.running.remove(domain)

    def listAllDomains(self) -> list[Domain]:  # noqa: N802
        return list(self.running)

    def lookupByName(self, name: str) -> Domain:  # noqa: N802
        for domain in list(self.running):
            if domain.name() == name:
                return domain
        raise LibvirtError(f"Domain not found: no domain with matching name '{name}'")

    def getVersion(self) -> int:  # noqa: N802
        return self.qemu_version

    def createXML(self, xml: str) -> Domain:  # noqa: N802
        domain = self._start(xml)
        with self.lock:
            self.booted.append(domain.name())
        return domain

    def saveImageGetXMLDesc(self, path: str, _flags: int) -> str:  # noqa: N802
        return Path(path).read_text()

    def restoreFlags(self, path: str, xml: str, flags: int) -> None:  # noqa: N802
        assert flags == LIBVIRT.VIR_DOMAIN_SAVE_BYPASS_CACHE
        saved = Domain(self, Path(path).read_text())
        domain = Domain(self, xml)
        if saved.name() != domain.name() or saved.files != domain.files:
            raise LibvirtError("Target domain name or disk does not match source")
        self._start(xml)
        with self.lock:
            self.restored.append(domain.name())

    def _start(self, xml: str) -> Domain:
        domain = Domain(self, xml)
        if domain.name() in self.refused:
            raise LibvirtError("internal error: process exited while connecting to monitor")
        missing = [path for path in domain.files if not Path(path).exists()]
        if missing:
            raise LibvirtError(f"Cannot access storage file '{missing[0]}'")
        with self.lock:
            self.running.append(domain)
            self.most_at_once = max(self.most_at_once, len(self.running))
        self.at_start(domain)
        if domain.name() in self.short_lived:
            self.gone(domain)
        return domain
