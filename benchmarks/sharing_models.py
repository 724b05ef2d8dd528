"""How well the contents of more guests are told from a census of few, by several models.

Usage: python benchmarks/sharing_models.py DIRECTORY ...
Reads every census below these directories, which should be of guests alike.
Between guests KSM can save what they hold less what is different of it, in MB/VM. Two comparisons:
- from each census of 4 to 8 guests what the guests of 10 and more in other boots were found to hold;
- a consistency check: each census of 15 and more thinned to 4 to 10 guests (the expectation over all choices
  of so many, which is exact), and the models asked for the whole of it. It is the same census, so that it
  tells of the curve alone and nothing of how boots differ.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from analysis.errors import UserError
from analysis.measure.chances import fit_chances
from analysis.measure.page_contents import from_record
from analysis.records.models import CensusRecord, SnapshotRecord
from analysis.records.reading import read_record

PAGES_A_MIB = 256
FEW, MANY, LARGE = (4, 8), 10, 15
THINNED = (4, 6, 8, 10)
# held[j]: contents that exactly j of the guests hold.
Held = Sequence[float]


def rarefied(held: Held, guests: int) -> float:
    """Expected different contents of so many of the guests counted."""
    n = len(held) - 1
    ways = math.comb(n, guests)
    return sum(f * (1 - math.comb(n - j, guests) / ways) for j, f in enumerate(held) if j)


def thinned(held: Held, guests: int) -> list[float]:
    """Expected ``held`` of so many of the guests counted."""
    n, found = len(held) - 1, [0.0] * (guests + 1)
    for j, contents in enumerate(held):
        for i in range(1, min(j, guests) + 1):
            found[i] += contents * math.comb(j, i) * math.comb(n - j, guests - i) / math.comb(n, guests)
    return found


def chances(held: Held, guests: int) -> float:
    """The forecast's: common, alone, and Beta between."""
    return sum(held) + fit_chances(held).new(guests)


def constant(held: Held, guests: int) -> float:
    """The forecast's without a census, saved/VM = I + D (N - 1)/N: what is shared, all share."""
    n, one = len(held) - 1, rarefied(held, 1)
    shared = (n * one - sum(held)) / (n - 1)
    return guests * one - (guests - 1) * shared


def last_gain(held: Held, guests: int) -> float:
    """Each guest brings as many new contents as the last one did on average."""
    n = len(held) - 1
    return sum(held) + (guests - n) * held[1] / n


def chao2(held: Held, guests: int) -> float:
    """A closed pool (Chao, Biometrics 43, 1987; Colwell et al., Journal of Plant Ecology 5, 2012)."""
    n = len(held) - 1
    unseen = held[1] ** 2 / (2 * held[2]) * (n - 1) / n if held[2] else 0.0
    gain = 1 - (1 - held[1] / (n * unseen + held[1])) ** (guests - n) if unseen else 0.0
    return sum(held) + unseen * gain


def good_toulmin(held: Held, guests: int) -> float:
    """Smoothed by a binomial (Orlitsky, Suresh and Wu, PNAS 113, 2016); what all hold brings nothing new."""
    n = len(held) - 1
    more = (guests - n) / n
    weights = [1.0] * n
    if more > 1:
        draws = int(0.5 * math.log2(n * more**2 / (more - 1)))
        chance = 2 / (more + 2)
        weights = [
            sum(math.comb(draws, i) * chance**i * (1 - chance) ** (draws - i) for i in range(j, draws + 1))
            for j in range(n)
        ]
    return sum(held) - sum((-more) ** j * weights[j] * held[j] for j in range(1, n))


MODELS: dict[str, Callable[[Held, int], float]] = {
    "chances": chances,
    "I + D": constant,
    "last gain": last_gain,
    "Chao2": chao2,
    "Good-Toulmin": good_toulmin,
}


def between(held: Held, distinct: float, guests: int) -> float:
    """What so many guests could save between them, MB/VM."""
    return (rarefied(held, 1) - distinct / guests) / PAGES_A_MIB


def censuses(directories: Sequence[Path]) -> list[tuple[str, str, Held]]:
    """The boot, workload and ``held`` of each census of one workload."""
    found: list[tuple[str, str, Held]] = []
    for path in sorted(path for directory in directories for path in directory.rglob("census.json")):
        try:
            record = read_record(path, CensusRecord)
        except UserError as error:
            print(f"! not used: {error}")
            continue
        if record.cell is not None and "=" not in record.cell.workload:
            off = read_record(path.with_name("off.json"), SnapshotRecord)
            boot = off.provenance.start.booted_at or f"{record.run_id} boot {record.cell.boot}"
            found.append((boot, record.cell.workload, from_record(record).held))
    return found


def row(name: str, values: Sequence[float]) -> None:
    """One line of a table."""
    print(f"{name:34}" + "".join(f"{value:13.2f}" for value in values))


def summary(errors: dict[str, list[float]]) -> None:
    """Mean and root mean square of each model's errors, where there are any."""
    if not all(errors.values()):
        print("no census to compare with")
        return
    row("mean error", [fmean(errors[name]) for name in MODELS])
    row("root mean square", [math.sqrt(fmean(e * e for e in errors[name])) for name in MODELS])


def main() -> None:
    """Print both comparisons, of those that there are censuses for."""
    found = censuses([Path(word) for word in sys.argv[1:]])
    few = [one for one in found if FEW[0] <= len(one[2]) - 1 <= FEW[1]]
    many = [one for one in found if len(one[2]) > MANY]
    heads = f"{'':34}" + "".join(f"{name:>13}" for name in MODELS)
    print(f"From another boot's census: error of what is saved between guests, MB/VM\n{heads}")
    errors: dict[str, list[float]] = {name: [] for name in MODELS}
    for boot, workload, held in few:
        others = [other for its, w, other in many if its != boot and w == workload]
        for n in sorted({len(other) - 1 for other in others}):
            actual = fmean(between(other, sum(other), n) for other in others if len(other) == n + 1)
            mine = {name: between(held, told(held, n), n) - actual for name, told in MODELS.items()}
            row(f"{workload} {len(held) - 1} -> {n} ({actual:.2f})", [*mine.values()])
            for name, error in mine.items():
                errors[name].append(error)
    summary(errors)
    large = [held for _boot, _workload, held in found if len(held) > LARGE]
    print(
        f"\nThe same census thinned (a consistency check), {len(large)} censuses of {LARGE} and more\n{heads}"
    )
    for n in THINNED:
        small = [(thinned(held, n), held) for held in large]
        errors = {
            name: [
                between(few, told(few, len(all_) - 1), len(all_) - 1)
                - between(all_, sum(all_), len(all_) - 1)
                for few, all_ in small
            ]
            for name, told in MODELS.items()
        }
        print(f"thinned to {n}")
        summary(errors)


if __name__ == "__main__":
    main()
