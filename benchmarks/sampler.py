"""What the sampler costs on this host, in percent of one core at 1 Hz; reads only, KSM is not touched.

The baseline reads the same files the plain way: opened anew and parsed whole for each sample.
Usage: python benchmarks/sampler.py [SECONDS]
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import ansible.module_utils

PLUGINS = Path(__file__).parents[1] / "plugins"
ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))

from ansible.module_utils import ksm_probe  # noqa: E402 -- found by the line above


def load(name: str) -> ModuleType:
    """A module, imported and not run."""
    spec = importlib.util.spec_from_file_location(name, PLUGINS / "modules" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not in {PLUGINS / 'modules'}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def percent_of_a_core(sample: Callable[[], object], seconds: int) -> float:
    """The CPU time of one sample a second, over seconds, in percent."""
    begin_cpu, begin = time.process_time(), time.monotonic()
    for slot in range(1, seconds + 1):
        sample()
        time.sleep(max(0.0, begin + slot - time.monotonic()))
    return 100 * (time.process_time() - begin_cpu) / (time.monotonic() - begin)


def main() -> None:
    """Measure both in one run, the baseline first and last, so that a drift of the host would show."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    series = load("measure_series")
    roots = ksm_probe.Roots()
    sampler = series.Sampler(roots)
    ksmd = ksm_probe.find_ksmd(roots)

    def plain() -> None:
        ksm_probe.meminfo(roots)
        ksm_probe.vmstat(roots)
        ksm_probe.ksm_counters(roots)
        ksm_probe.pressure(roots)
        ksm_probe.parse_stat(ksmd.read_text())

    before = percent_of_a_core(plain, seconds)
    ours = percent_of_a_core(sampler.row, seconds)
    after = percent_of_a_core(plain, seconds)
    print(f"sampler, descriptors kept open:    {ours:.3f} % of one core at 1 Hz over {seconds} s")
    print(f"baseline, opened and parsed whole: {before:.3f} % before it, {after:.3f} % after it")


if __name__ == "__main__":
    main()
