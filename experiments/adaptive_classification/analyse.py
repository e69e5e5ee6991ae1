"""Cascades over nested classifiers: what they save, what they lose, and whether the certificate keeps its promise.

    python experiments/adaptive_classification/analyse.py results/newsgroups/study results/reuters_r52/study

For the MRL and MRL-E models of each run, all seeds:

- as a user would have it: rules from the validation split, scored on the test split (`cascades.csv`), against full
  width, the fixed-size models FF(m) and the oracle;
- the certificate over redrawn splits (`redraws.csv`): validation and test texts are pooled and dealt anew, so many for
  calibration, the rest to see what is really lost; 200 redraws in all for each arm and number of calibration texts.

Writes both files and `cascades.png` beside this file, and prints tables as Markdown.
"""

import argparse
import csv
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import mrl_jax
from mrl_jax import config, data, runs
from mrl_jax.evaluate import adaptive, cascade
from mrl_jax.report import statistics

ARMS = ("mrl", "mrl_e")
EPSILON, DELTA, KIND = 0.01, 0.1, "margin"
REDRAWS = 200
MORE = 3000  # calibration texts, besides as many as the validation split has


class Served(NamedTuple):
    data: str
    arm: str
    seed: int
    rule: str
    certified: int
    full: float
    accuracy: float
    dims: float
    cumulative_dims: float
    kflop: float
    captured: float
    time: float  # of the heads, ÷ that of the full-width head, in NumPy
    shares: str


class Redraw(NamedTuple):
    data: str
    arm: str
    calibration: int
    seed: int
    certified: int
    lost: float
    dims: float


def confidences(logits: list[np.ndarray], temperatures: tuple[float, ...]) -> np.ndarray:
    return np.stack([cascade.confidence(x, t, KIND) for x, t in zip(logits, temperatures, strict=True)])


def seconds(call: object, times: int = 7) -> float:
    measured = []
    for _ in range(times):
        started = time.perf_counter()
        call()  # type: ignore[operator]
        measured.append(time.perf_counter() - started)
    return min(measured)


def study(name: str, path: Path, seeds: int) -> tuple[list[Served], list[Redraw], dict]:
    settings = config.from_yaml(path / "config.yaml")
    dataset = data.load(settings.data)
    served, redraws = [], []
    outcomes = defaultdict(list)  # (arm, rule) → per seed: lost [n] and dims [n] of the test texts
    for arm in ARMS:
        for seed in range(seeds):
            model = mrl_jax.load(path, arm=arm, seed=seed)
            heads = model.classifiers()
            dims, tied = np.array(list(heads)), model.head == "tied"
            splits = {"validation": dataset.validation, "test": dataset.test}
            z = {part: model.embed([str(text) for text in split.inputs]) for part, split in splits.items()}
            labels = {part: split.labels for part, split in splits.items()}
            logits = {part: [x[:, :m] @ w + b for m, (w, b) in heads.items()] for part, x in z.items()}
            right = np.stack([x.argmax(axis=1) == labels["test"] for x in logits["test"]])
            rules = adaptive.rules(logits["validation"], labels["validation"], EPSILON, DELTA, KIND, seed)
            classifiers = list(heads.values())
            kernel, bias = classifiers[-1]
            full_time = seconds(lambda z=z, kernel=kernel, bias=bias: (z["test"] @ kernel + bias).argmax(axis=1))
            for rule, made in rules.items():
                left = cascade.leaving(confidences(logits["test"], made.temperatures), made.thresholds)
                found = cascade.outcome_of_exits(left, right, dims, kernel.shape[1], tied)
                answers = right[left, np.arange(len(left))]
                outcomes[arm, rule].append((right[-1].astype(float) - answers, dims[left].astype(float)))
                spent = seconds(
                    lambda made=made, z=z, c=classifiers, tied=tied: cascade.serve(
                        z["test"], c, made.temperatures, made.thresholds, KIND, tied
                    )
                )
                served.append(
                    Served(name, arm, seed, rule, int(made.certified), found.full, found.accuracy, found.dims,
                           found.cumulative_dims, found.flops / 1e3, found.captured, spent / full_time,
                           " ".join(f"{share:.4f}" for share in found.shares))
                )  # fmt: skip
            pooled = [np.concatenate(both) for both in zip(logits["validation"], logits["test"], strict=True)]
            every = np.concatenate([labels["validation"], labels["test"]])
            for count in (len(labels["validation"]), MORE):
                if count < len(every) - 1000:
                    redraws += redrawn(name, arm, seed, pooled, every, dims, count, REDRAWS // seeds)
            print(f"{name} {arm} seed {seed}", file=sys.stderr)
    return served, redraws, outcomes


def redrawn(
    name: str,
    arm: str,
    seed: int,
    logits: list[np.ndarray],
    labels: np.ndarray,
    dims: np.ndarray,
    count: int,
    times: int,
) -> list[Redraw]:
    """The certified rule of `count` calibration texts, and what it loses on all others, `times` times."""
    found = []
    for draw in range(times):
        order = np.random.default_rng((seed, draw, count)).permutation(len(labels))
        here, there = order[:count], order[count:]
        rule = adaptive.rules([x[here] for x in logits], labels[here], EPSILON, DELTA, KIND, draw)["certified"]
        left = cascade.leaving(confidences([x[there] for x in logits], rule.temperatures), rule.thresholds)
        right = np.stack([x[there].argmax(axis=1) == labels[there] for x in logits])
        lost = right[-1].mean() - right[left, np.arange(len(left))].mean()
        found.append(Redraw(name, arm, count, seed, int(rule.certified), float(lost), float(dims[left].mean())))
    return found


def summary(served: list[Served], outcomes: dict, name: str) -> str:
    lines = [
        "| cascade | full width | top-1 | lost, points | mean dims | cumulative | kFLOP | of the oracle's saving "
        "| certified | time ÷ full head |",
        "|---" * 10 + "|",
    ]
    for (arm, rule), pairs in outcomes.items():
        rows = [row for row in served if (row.data, row.arm, row.rule) == (name, arm, rule)]
        lost = statistics.mean_interval(np.stack([a for a, _ in pairs]))
        spent = statistics.mean_interval(np.stack([b for _, b in pairs]))
        mean = {key: np.mean([getattr(row, key) for row in rows]) for key in Served._fields[5:12]}
        promise = f"{sum(row.certified for row in rows)} of {len(rows)}" if rule == "certified" else "–"
        lines.append(
            f"| {arm}, {rule} | {100 * mean['full']:.2f} | {100 * mean['accuracy']:.2f} "
            f"| {100 * lost.mean:+.2f} [{100 * lost.low:+.2f}, {100 * lost.high:+.2f}] "
            f"| {spent.mean:.1f} [{spent.low:.1f}, {spent.high:.1f}] | {mean['cumulative_dims']:.1f} "
            f"| {mean['kflop']:.2f} | {100 * mean['captured']:.0f} % | {promise} | {mean['time']:.1f} |"
        )
    return "\n".join(lines)


def promises(redraws: list[Redraw]) -> str:
    lines = [
        "| data | arm | calibration texts | redraws | certified | lost more than 1 point | lost, mean "
        "| dims, mean (10 % … 90 %) |",
        "|---" * 8 + "|",
    ]
    groups = defaultdict(list)
    for row in redraws:
        groups[row.data, row.arm, row.calibration].append(row)
    for (name, arm, count), rows in groups.items():
        dims = np.array([row.dims for row in rows])
        lost = np.array([row.lost for row in rows])
        low, high = np.quantile(dims, (0.1, 0.9))
        lines.append(
            f"| {name} | {arm} | {count:,} | {len(rows)} | {np.mean([row.certified for row in rows]):.0%} "
            f"| {np.mean(lost > EPSILON):.1%} | {100 * lost.mean():+.2f} | {dims.mean():.1f} ({low:.0f} … {high:.0f}) |"
        )
    return "\n".join(lines)


def draw(served: list[Served], path: Path, studies: dict[str, Path]) -> None:
    """A panel a data set and arm: accuracy at each fixed dim, of FF(m) too, and of every seed's cascades."""
    figure = Figure(figsize=(10.5, 4 * len(studies)), layout="constrained")
    axes = figure.subplots(len(studies), 2, squeeze=False)
    for row, (name, run) in zip(axes, studies.items(), strict=True):
        values = defaultdict(lambda: defaultdict(list))
        for r in runs.read_rows(run / "evaluation.csv"):
            if (r.split, r.metric) == ("test", "linear_top1"):
                values[r.arm][r.dim].append(100 * r.value)
        for ax, arm in zip(row, ARMS, strict=True):
            nested = sorted(values["ff"])
            for one, color, label in ((arm, "#0072b2", arm), ("ff", "#009e73", "FF(m)")):
                means = [np.mean(values[one][m]) for m in nested]
                ax.plot(nested, means, "o-", color=color, ms=4, lw=1.4, label=f"{label} at fixed dims")
            for rule, color, marker in (("greedy", "#e69f00", "v"), ("certified", "black", "*")):
                mine = [s for s in served if (s.data, s.arm, s.rule) == (name, arm, rule)]
                ax.plot([s.dims for s in mine], [100 * s.accuracy for s in mine], marker, color=color, ms=8,
                        label=f"{rule} cascade, a seed each")  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.set_xticks(nested, [str(m) for m in nested])
            ax.set_title(f"{name}, {arm}", fontsize=11)
            ax.set(xlabel="mean dimensions of the answer", ylabel="top-1 test accuracy (%)")
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
            ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories with mrl, mrl_e and ff")
    options = parser.parse_args()
    served: list[Served] = []
    redraws: list[Redraw] = []
    tables, studies = {}, {}
    for path in options.runs:
        settings = config.from_yaml(runs.find(path) / "config.yaml")
        found, again, outcomes = study(settings.name, path, settings.seeds)
        served, redraws = served + found, redraws + again
        tables[settings.name], studies[settings.name] = summary(found, outcomes, settings.name), path
    folder = Path(__file__).parent
    for file, header, rows in (("cascades.csv", Served._fields, served), ("redraws.csv", Redraw._fields, redraws)):
        with (folder / file).open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([f"{x:.5f}" if isinstance(x, float) else x for x in row] for row in rows)
    draw(served, folder / "cascades.png", studies)
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}")
    print(f"\n{promises(redraws)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
