"""A census record of guests whose contents are given page by page; counted the plain way."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from analysis.plan.design import Cell


def census_record(
    guests: Mapping[str, Sequence[int]],
    *,
    max_page_sharing: int = 256,
    use_zero_pages: int = 0,
    pages_sharing: int = 0,
    ksm_zero_pages: int | None = 0,
    merged: Mapping[str, int | None] | None = None,
    largest_contents: Sequence[Mapping[str, Any]] = (),
    cell: Cell | None = None,
) -> dict[str, Any]:
    """Content 0 is a page of zeros; without ``merged`` it is a record of before it was counted."""
    names = sorted(guests)
    held = {name: set(guests[name]) - {0} for name in names}
    copies = Counter(content for name in names for content in guests[name] if content)
    kinds = Counter((sum(c in held[name] for name in names), number) for c, number in copies.items())
    table = sorted((held_by, number, contents) for (held_by, number), contents in kinds.items())
    return {
        "schema_version": 2,
        "kind": "census",
        "run_id": "synthetic",
        "recorded_at": "2026-11-23T19:00:00.123456Z",
        "monotonic_seconds": 1.5,
        "cell": None if cell is None else asdict(cell),
        "provenance": {
            "design_digest": None,
            "kernel_release": "6.18.44",
            "architecture": "x86_64",
            "cpu_model": "AMD EPYC",
            "cpu_count": 2,
            "page_size_bytes": 4096,
            "memory_total_bytes": 24 << 30,
            "os_release": "Debian GNU/Linux 12 (bookworm)",
            "qemu_version": None,
            "libvirt_version": None,
            "accelerator": None,
            "image_digest": None,
            "guest_memory_bytes": None,
            "thp": {"enabled": "madvise"},
            "ksm_knobs": {"max_page_sharing": max_page_sharing, "use_zero_pages": use_zero_pages},
            "swap_total_bytes": 0,
            "testbed_version": None,
        },
        "observed": {
            "guests": {
                name: {
                    "pid": 1000 + place,
                    "was_paused": False,
                    "mergeable_bytes": 1 << 29,
                    "resident_pages": len(guests[name]),
                    "zero_pages": list(guests[name]).count(0),
                    "zero_mapped_pages": 0,
                    "distinct_pages": len(held[name]),
                    "swapped_pages": 0,
                    "ksm_stat": None,
                }
                for place, name in enumerate(names)
            },
            "contents": {
                "guests": [row[0] for row in table],
                "copies": [row[1] for row in table],
                "contents": [row[2] for row in table],
            },
            "shared_contents": [[len(held[one] & held[other]) for other in names] for one in names],
            "ksm": {
                "run": 1,
                "pages_shared": 1,
                "pages_sharing": pages_sharing,
                "ksm_zero_pages": ksm_zero_pages,
            },
            **({} if merged is None else {"merged": dict(merged)}),
            **({"largest_contents": list(largest_contents)} if largest_contents else {}),
            "pause_seconds": 1.25,
            "read_seconds": 1.0,
            "count_seconds": 0.5,
            "bytes_read": 10**9,
            "processes": 2,
        },
    }
