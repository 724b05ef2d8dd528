"""The one rule of names, wherever they become a path, XML, YAML or a word of a shell."""

from __future__ import annotations

import pytest

from plugins.module_utils import names

EVIL = ("", "..", ".", "../up", "a/b", "/", "a b", "a\n", "a\0", "-rf", "a'", 'a"', "a<b", "a&b", "a$b", "ä")


@pytest.mark.parametrize("rule", ["RUN", "PLACE", "DATA_FILE", "GUEST", "DOMAIN", "SUITE", "PACKAGE"])
@pytest.mark.parametrize("name", EVIL)
def test_what_is_more_than_a_name_is_refused(rule: str, name: str) -> None:
    with pytest.raises(names.NameRefused) as refused:
        names.check("its name", name, getattr(names, rule))
    assert str(refused.value).startswith(f"its name is {name!r}: allowed is ")


@pytest.mark.parametrize(
    "path",
    ["", "/", "relative", "/a/../b", "/a/./b", "/a/..", "/a//b", "/a/", "/a b", "/a<b", "/a\n", "/a%d"],
)
def test_what_is_more_than_a_path_is_refused(path: str) -> None:
    with pytest.raises(names.NameRefused):
        names.check("its path", path, names.PATH)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("RUN", "20261123T210535Z"),
        ("RUN", "a" * 64),
        ("PLACE", "kvm1.example.org"),
        ("PLACE", "_gateway"),
        ("PLACE", "mix-constant_fill5-idle5-ksm-guests10-boot1-rep1.attempt1"),
        ("DATA_FILE", "smart_scan"),
        ("GUEST", "guest01"),
        ("GUEST", "guest999"),
        ("DOMAIN", "ksm-testbed-guest01"),
        ("PATH", "/var/lib/ksm-testbed"),
        ("PATH", "/srv/..data/.hidden"),
        ("SUITE", "bookworm-backports"),
        ("PACKAGE", "libstdc++6"),
        ("PACKAGE", "linux-image-cloud-amd64:amd64"),
    ],
)
def test_what_is_in_use_is_allowed(rule: str, name: str) -> None:
    assert names.check("its name", name, getattr(names, rule)) == name
