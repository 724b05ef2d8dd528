"""The module application: what runs in each guest, over a connection that this host plays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from plugin_files import load, run

MODULE = "plugins/modules/application.py"
application = load(MODULE)

# Connects and closes as ssh does; a command runs here, in a folder of the guest's own.
SSH = """#!/bin/sh
for last; do guest=$name; name=$last; done
echo "$*" | sed 's/ -o [^ ]*//g; s/-F [^ ]* //' | head -n 1 | cut -c 1-60 >> {folder}/ssh.log
case " $* " in
  *" -O exit "*) exit 0 ;;
  *" -N "*) [ ! -e {folder}/$name.down ] || {{ echo "Connection refused" >&2; exit 255; }}; exit 0 ;;
esac
exec sh -c "$(printf %s "$name" | sed "s:/run/testbed-application:{folder}/$guest:g")"
"""
# A service that is a file, a load that adds to it, and what both are worth
SERVICE = {
    "name": "service",
    "packages": [],
    "start": "echo started > service; sleep 300 & echo $! > pid",
    "ready": "test -e service",
    "load": 'echo "$GUEST $SEED" >> service',
    "verify": "cat service",
    "performance": {
        "command": "echo noise; echo 12.5 requests",
        "figure": "^([0-9.]+) requests",
        "unit": "1/s",
    },
    "ready_seconds": 1,
    "timeout_seconds": 60,
}


QUIET_SECONDS = 0.01


class Guests:
    """Guests of which each is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "bin/ssh"
        program.parent.mkdir()
        program.write_text(SSH.format(folder=folder))
        program.chmod(0o755)

    def run(
        self, state: str, *names: str, changes: dict[str, Any] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        return run(
            MODULE,
            state=state,
            applications={name: {**SERVICE, **(changes or {})} for name in names},
            channels={name: f"/guests/{name}/channel" for name in names},
            seed="boot1",
            **{"quiet_seconds": QUIET_SECONDS, **arguments},
        )

    def refusal(self, state: str, **changes: Any) -> str:
        result = self.run(state, "guest01", changes=changes)
        assert result["failed"]
        return str(result["msg"])

    def held(self, name: str) -> str:
        return (self.folder / name / "service").read_text()

    @property
    def log(self) -> list[str]:
        return (self.folder / "ssh.log").read_text().splitlines()

    def close(self) -> None:
        for path in self.folder.glob("guest*/pid"):
            os.kill(int(path.read_text()), 15)


@pytest.fixture
def guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    made = Guests(tmp_path)
    yield made
    made.close()


def test_guests_are_started_loaded_with_a_seed_of_their_own_and_verified(guests: Guests) -> None:
    """The service that start leaves behind keeps its output open, and nobody waits for it."""
    loaded = guests.run("loaded", "guest01", "guest02")
    assert loaded["changed"], loaded
    assert guests.held("guest02") == "started\nguest02 boot1:guest02\n"
    assert set(loaded["answers"]) == {"guest01", "guest02"}
    first = loaded["answers"]["guest01"]
    assert first["digest"] == application.digest("started\nguest01 boot1:guest01\n")
    assert (first["filled_bytes"], first["seed"]) == (0, "boot1:guest01")
    (guests.folder / "guest02/service").write_text("another\n")
    expected = {name: one["digest"] for name, one in loaded["answers"].items()}
    verified = guests.run("verified", "guest01", "guest02", expected=expected)
    assert not verified["changed"]
    assert [one["intact"] for one in verified["answers"].values()] == [True, False]


def test_each_guest_has_one_connection_which_is_closed_at_the_end(guests: Guests) -> None:
    guests.run("loaded", "guest01")
    assert guests.log[0].split()[-3:] == ["-f", "-N", "guest01"]
    assert guests.log[-1] == "-O exit guest01"
    assert sum("-N" in line for line in guests.log) == 1


def test_a_figure_is_what_its_pattern_finds_in_what_was_printed(guests: Guests) -> None:
    guests.run("loaded", "guest01")
    (answer,) = guests.run("performed", "guest01")["answers"].values()
    assert answer["printed"] == "noise\n12.5 requests\n"
    assert (answer["figure"], answer["unit"]) == (12.5, "1/s")
    assert answer["took"]["seconds"] > 0


def ksm_host(folder: Path, *, sharing: int, written: int | None) -> dict[str, str]:
    """The trees of a host that has merged so many pages, of which so many were written to since its boot."""
    ksm = folder / "sys/kernel/mm/ksm"
    ksm.mkdir(parents=True, exist_ok=True)
    for name, value in {"run": 1, "full_scans": 3, "pages_shared": 1, "pages_sharing": sharing}.items():
        (ksm / name).write_text(f"{value}\n")
    (folder / "proc").mkdir(exist_ok=True)
    counted = "" if written is None else f"cow_ksm {written}\n"
    (folder / "proc/vmstat").write_text(f"pswpin 0\npswpout 0\n{counted}")
    return {"proc_root": str(folder / "proc"), "sys_root": str(folder / "sys")}


def test_what_a_command_undoes_of_the_saving_is_counted_beside_the_quiet_before_it(tmp_path: Path) -> None:
    """7 merged pages are written to in the quiet, 50 by the command, of which ksmd merges 20 again."""
    roots = application.Roots(*map(Path, ksm_host(tmp_path, sharing=1000, written=100).values()))
    moments = []
    for sharing, written in ((1000, 100), (1000, 107), (970, 157)):
        ksm_host(tmp_path, sharing=sharing, written=written)
        moments.append(application.merged(roots))
    quiet, begin, end = moments
    assert quiet.seconds <= begin.seconds <= end.seconds
    assert application.decay(*moments) == {
        "quiet_seconds": begin.seconds - quiet.seconds,
        "quiet_cow_ksm": 7,
        "cow_ksm": 50,
        "saved_pages_before": 1000,
        "saved_pages_after": 970,
    }


def test_a_kernel_that_counts_no_writes_to_merged_pages_tells_the_saving_alone(guests: Guests) -> None:
    command = f"echo 970 > {guests.folder}/sys/kernel/mm/ksm/pages_sharing; echo 12.5 requests"
    changes = {"performance": {**SERVICE["performance"], "command": command}}
    roots = ksm_host(guests.folder, sharing=1000, written=None)
    answer = guests.run("performed", "guest01", changes=changes, **roots)
    decay = answer["answers"]["guest01"]["decay"]
    assert decay.pop("quiet_seconds") >= QUIET_SECONDS
    assert decay == {
        "quiet_cow_ksm": None,
        "cow_ksm": None,
        "saved_pages_before": 1000,
        "saved_pages_after": 970,
    }


def test_a_quiet_of_no_length_is_refused(guests: Guests) -> None:
    refused = guests.run("performed", "guest01", quiet_seconds=0.0)
    assert refused["msg"] == "quiet_seconds is 0: it has to be more than 0"


def test_where_nothing_is_merged_no_decay_is_looked_for(guests: Guests) -> None:
    roots = ksm_host(guests.folder, sharing=0, written=100)
    answer = guests.run("performed", "guest01", **roots)
    assert answer["answers"]["guest01"]["decay"] is None


def test_a_rehearsal_is_run_and_not_measured(guests: Guests) -> None:
    command = "echo . >> runs; echo $(wc -l < runs) requests"
    changes = {"performance": {**SERVICE["performance"], "command": command}}
    figures = [
        guests.run("performed", "guest01", changes=changes, rehearsal=rehearsal)["answers"]["guest01"][
            "figure"
        ]
        for rehearsal in (True, False)
    ]
    assert figures == [2, 3]


def test_some_guests_are_measured_spread_over_all_and_those_without_a_figure_are_not(guests: Guests) -> None:
    names = [f"guest{number:02d}" for number in range(1, 7)]
    assert set(guests.run("performed", *names, guests=3)["answers"]) == {"guest01", "guest03", "guest05"}
    silent = guests.run("performed", *names, changes={"performance": None})
    assert (silent["answers"], silent["changed"]) == ({}, False)


def test_check_mode_runs_nothing(guests: Guests) -> None:
    assert guests.run("loaded", "guest01", check=True)["changed"]
    assert not (guests.folder / "ssh.log").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"ready": "echo no answer on port 80 >&2; false"},
            "guest01: the workload service was not ready within 1 s (ready_seconds): no answer on port 80",
        ),
        (
            {"start": "echo no such user >&2; exit 3"},
            "guest01: start of the workload service failed with exit code 3: no such user",
        ),
        (
            {"load": "false; echo went on"},
            "guest01: load of the workload service failed with exit code 1: nothing was said",
        ),
        (
            {"load": "sleep 5", "timeout_seconds": 1},
            "guest01: load of the workload service did not end within 1 s (timeout_seconds)",
        ),
        (
            {"verify": "head -c 65537 /dev/zero | tr '\\0' x"},
            "guest01: verify of the workload service printed more than 65536 bytes: print less",
        ),
        (
            {"packages": ["dpkg", "ksm-testbed-absent"]},
            "guest01: the image lacks ksm-testbed-absent, which the workload service needs: "
            "install it in the image, or set image_source=build",
        ),
    ],
)
def test_what_a_guest_cannot_do_is_one_sentence(guests: Guests, changes: dict[str, Any], said: str) -> None:
    assert guests.refusal("loaded", **changes) == said


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (
            "apr_socket_recv: Connection reset by peer",
            "printed nothing that fits '([0-9x]+) req': apr_socket_recv: ",
        ),
        ("1x req", "printed '1x' for the number of '([0-9x]+) req'"),
    ],
)
def test_a_load_tool_that_gives_no_figure_is_named_with_what_it_printed(
    guests: Guests, printed: str, said: str
) -> None:
    performance = {"command": f"echo {printed}", "figure": "([0-9x]+) req", "unit": "1/s"}
    refused = guests.refusal("performed", performance=performance)
    assert refused.startswith(f"guest01: performance of the workload service {said}")


def test_a_load_tool_that_fails_is_named(guests: Guests) -> None:
    performance = {**SERVICE["performance"], "command": "echo 12.5 requests; echo 5 failed >&2; exit 2"}
    assert guests.refusal("performed", performance=performance) == (
        "guest01: performance of the workload service failed with exit code 2: 5 failed"
    )


def test_a_guest_that_ssh_does_not_reach_is_named(guests: Guests) -> None:
    (guests.folder / "guest01.down").touch()
    assert guests.refusal("loaded") == "guest01 cannot be reached by SSH: Connection refused"
