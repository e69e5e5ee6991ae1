"""What damage to the test texts costs each prefix of MRL-E, against what it costs the full width.

    python experiments/few_shot/analyse.py results/reuters_r52/few_shot results/newsgroups/few_shot

For each run, damage and dim: accuracy on undamaged minus accuracy on damaged texts, and that minus the same at full
width, in percentage points with 95 % intervals over seeds and texts. Writes `damage.csv` beside this file and prints it
as Markdown.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mrl_jax.report import statistics
from mrl_jax.report.gather import gather

DAMAGE = ("typos", "dropped_words")
MARGIN = 1.0  # points within which a prefix is called as robust as the full width


class Cost(NamedTuple):
    """What damage costs at `dim`, and that minus what it costs at full width, in percentage points."""

    data: str
    damage: str
    dim: int
    cost: float
    more: float
    low: float
    high: float
    verdict: str


def verdict(low: float, high: float) -> str:
    """As the protocol has it."""
    if low >= -MARGIN and high <= MARGIN:
        return "as robust"
    if low > 0:
        return "less robust"
    return "more robust" if high < 0 else "not settled"


def costs(run: Path) -> Iterator[Cost]:
    """The lines of one run."""
    gathered = gather([run])
    series = gathered.find("mrl_e")
    assert series is not None
    clean = gathered.outcomes(series, "linear_top1")
    for damage in DAMAGE:
        lost = {dim: clean[dim] - v for dim, v in gathered.outcomes(series, f"{damage}_top1").items()}
        full = lost[max(lost)]
        for d in statistics.differences(lost, dict.fromkeys(lost, full)):
            more, low, high = 100 * d.mean, 100 * d.low, 100 * d.high
            said = "" if d.dim == max(lost) else verdict(low, high)
            yield Cost(gathered.name, damage, d.dim, 100 * float(lost[d.dim].mean()), more, low, high, said)


def main(paths: list[str]) -> None:
    """Write and print the table."""
    lines = [line for path in paths for line in costs(Path(path))]
    with Path(__file__).with_name("damage.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Cost._fields)
        writer.writerows([f"{x:.3f}" if isinstance(x, float) else x for x in line] for line in lines)
    print("| data | damage | dim | cost | more than at full width | |\n|---|---|---:|---:|---:|---|")
    for x in lines:
        interval = f"{x.more:+.2f} [{x.low:+.2f}, {x.high:+.2f}]" if x.verdict else "–"
        print(f"| {x.data} | {x.damage} | {x.dim} | {x.cost:.2f} | {interval} | {x.verdict} |")


if __name__ == "__main__":
    main(sys.argv[1:])
