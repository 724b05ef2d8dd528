"""What a survey of many hosts costs the controller; nothing is measured with KSM, nothing is changed.

So many hosts are this machine under as many names, reached without SSH. For each number of hosts and of forks
it prints how long the play takes, and the controller's CPU time: that of all processes of the play less what
the module takes by itself, which a remote host pays. An interpreter that counts tells what goes to a host and
back.
Usage: python -m benchmarks.scale [HOSTS,HOSTS... [FORKS,FORKS...]]
"""

import json
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

from analysis.plan.design import PROJECT
from benchmarks.census import cpu_seconds

HOSTS, FORKS = (1, 10, 30), (5, 10, 30)
# Reads the module from its standard input, as Ansible pipes it; counts what comes, goes and is used.
COUNTING = """#!{python} -S
import os, resource, subprocess, sys, tempfile
sent = sys.stdin.buffer.read()
with tempfile.NamedTemporaryFile(suffix=".py") as module:
    module.write(sent)
    module.flush()
    done = subprocess.run([{python!r}, module.name], stdout=subprocess.PIPE)
used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
with open({folder!r} + "/" + str(os.getpid()), "w") as file:
    print(len(sent), len(done.stdout), used, file=file)
sys.stdout.buffer.write(done.stdout)
sys.exit(done.returncode)
"""


def play(hosts: int, forks: int, folder: Path, interpreter: str) -> tuple[float, float]:
    """Survey so many hosts; (seconds, CPU seconds of all processes of the play)."""
    # By what the modules' first line names
    given = {"ansible_connection": "local", "ansible_python3_interpreter": interpreter}
    inventory = folder / "hosts.json"
    names = {f"host{number:03d}": given for number in range(1, hosts + 1)}
    inventory.write_text(json.dumps({"all": {"hosts": names}}))
    begin, cpu = time.perf_counter(), cpu_seconds()
    subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible-playbook"), "playbooks/survey.yml", "-i", inventory),
            *("--forks", str(forks), "-e", f"run_id=hosts{hosts}forks{forks}"),
            *("-e", f"results_directory={folder}/results"),
        ],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begin, cpu_seconds() - cpu


def main() -> None:
    """Print the table, and the sizes."""
    hosts, forks = (
        tuple(map(int, word.split(",")))
        for word in (*sys.argv[1:], *(",".join(map(str, n)) for n in (HOSTS, FORKS)[len(sys.argv) - 1 :]))
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = folder / "counts"
        counts.mkdir()
        counting = folder / "counting"
        counting.write_text(COUNTING.format(python=sys.executable, folder=str(counts)))
        counting.chmod(stat.S_IRWXU)
        play(3, 3, folder, str(counting))
        rows = [list(map(float, path.read_text().split())) for path in counts.iterdir()]
        sent, received, module = (fmean(column) for column in zip(*rows, strict=True))
        records = [path.stat().st_size for path in (folder / "results").rglob("survey.json")]
        print(
            f"a host is sent {sent / 1024:.0f} KiB and sends {received / 1024:.0f}, its record has "
            f"{fmean(records) / 1024:.0f}; the module takes {module:.2f} s of its CPU"
        )
        print("hosts  forks  seconds  controller's CPU s   of it for each host")
        for number in hosts:
            for some in forks:
                if some > number and some != min(forks):
                    continue
                seconds, cpu = play(number, some, folder, sys.executable)
                own = cpu - number * module
                print(f"{number:5d}  {some:5d}  {seconds:7.1f}  {own:18.1f}  {own / number:20.2f}")


if __name__ == "__main__":
    main()
