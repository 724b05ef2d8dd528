"""What ksmd takes for a page that it scans: on a host since its boot, and in the published campaign."""

from dataclasses import dataclass
from pathlib import Path

from analysis.plan.design import PROJECT
from analysis.records.models import Ksm, MergeRecord
from analysis.records.reading import RecordError, read_record

PUBLISHED = PROJECT / "results/reference/cells"


@dataclass(frozen=True)
class Scanning:
    """Seconds of ksmd's CPU time for a page, and complete scans until the saving had settled, as ranges."""

    least_seconds: float
    most_seconds: float
    least_scans: int
    most_scans: int
    cpu_model: str

    def settling_seconds(self, pages: int) -> tuple[float, float]:
        """CPU time until as many pages have settled, at least and at most."""
        return self.least_seconds * self.least_scans * pages, self.most_seconds * self.most_scans * pages


def page_seconds(ksm: Ksm | None, ksmd_cpu_seconds: float | None) -> float | None:
    """CPU time for a page that ksmd has scanned since the boot; None where it has not or does not tell."""
    if ksm is None or not ksm.pages_scanned or not ksmd_cpu_seconds:
        return None
    return ksmd_cpu_seconds / ksm.pages_scanned


def published(directory: Path = PUBLISHED) -> Scanning | None:
    """What the merges of the published campaign took, cell by cell; None without its records."""
    seconds, scans, models = [], [], set()
    for path in sorted(directory.rglob("merge.json")):
        try:
            record = read_record(path, MergeRecord)
        except RecordError:
            continue
        samples = record.observed.samples
        first, last = samples.pages_scanned[0], samples.pages_scanned[-1]
        if first is None or last is None or last <= first or not record.observed.converged:
            continue
        seconds.append((samples.ksmd_cpu_seconds[-1] - samples.ksmd_cpu_seconds[0]) / (last - first))
        scans.append(samples.full_scans[-1] - samples.full_scans[0])
        models.add(record.provenance.cpu_model or "unknown CPU")
    if not seconds:
        return None
    return Scanning(min(seconds), max(seconds), min(scans), max(scans), ", ".join(sorted(models)))
