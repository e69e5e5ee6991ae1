"""A study: any number of runs gathered, checked to be comparable, and read arm by arm.

Runs that differ only in what cannot change a model (arms, seeds, names, how the population was scheduled) are pooled as
one variant; runs that differ in other keys become variants of their own, so that one arm can be compared between them.
What cannot be compared is refused: other data, another number of steps, another batch size.
"""

import functools
import json
import math
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from mrl_jax import arms, runs
from mrl_jax import config as configuration
from mrl_jax.config import Config
from mrl_jax.data.readers.arrays import DAMAGED
from mrl_jax.data.readers.records import check_expansion
from mrl_jax.errors import UserError
from mrl_jax.report.statistics import Crossover, Difference, Interval, mean_interval
from mrl_jax.runs import MetricRow

LABELS = {
    "mrl": "MRL",
    "mrl_e": "MRL-E",
    "mrl_sampled": "MRL sampled",
    "ff": "FF",
    "truncated": "truncated",
    "random_subset": "random subset",
    "random_projection": "random projection",
    "pca": "PCA",
    "pca_whitened": "PCA whitened",
    "untuned": "untuned",
    "untuned_pca": "untuned, PCA",
}
# Colours of Okabe and Ito, and one of Tol: told apart by colour-blind readers too.
COLORS = {
    "mrl": "#0072b2",
    "mrl_e": "#d55e00",
    "mrl_sampled": "#56b4e9",
    "ff": "#009e73",
    "truncated": "#e69f00",
    "random_subset": "#999999",
    "random_projection": "#000000",
    "pca": "#cc79a7",
    "pca_whitened": "#882255",
    "untuned": "#8c6d31",
    "untuned_pca": "#c49c94",
}
NESTED = ("mrl", "mrl_e", "mrl_sampled")
BASELINES = ("ff", "truncated", "pca")  # what a nested arm is compared with
# What is drawn and compared, as far as it was measured: of classes the first two, of pairs the others.
MEASURES = {
    "linear_top1": "classifier, top-1 accuracy",
    "knn_top1": "nearest neighbour, top-1 accuracy",
    "ndcg@10": "search, nDCG@10",
    "recall@10": "search, recall@10",
    "spearman": "similarity, Spearman correlation",
}

REFITTED = "Against arms compressed after training, nested arms are read by a refitted classifier too (refit_top1)."
NOT_REFITTED = (
    "Arms compressed after training have refitted classifiers, nested arms their own: there is no refit_top1."
)

LONGEST_KEY = 120  # signs of a file's name
MOST = 1e15  # no measurement is larger

# Keys that do not make another variant: they leave every model as it is, or are checked on their own (the steps).
SAME_VARIANT = {
    "name", "arms", "seeds", "run", "resume", "results_dir",
    "trainer.population", "trainer.arms_at_once", "trainer.checkpoint_seconds", "trainer.log_every",
    "trainer.steps", "trainer.epochs",
    "evaluation.interpolated", "evaluation.dims", "evaluation.neighbours", "evaluation.quantised",
    "evaluation.batch_size", "evaluation.cascade",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line in the plots: an arm of one configuration."""

    arm: str
    variant: str | None = None  # None when all gathered runs share one configuration

    @property
    def label(self) -> str:
        return LABELS[self.arm] + ("" if self.variant is None else f" · {self.variant}")

    @property
    def key(self) -> str:
        """The label for file names and HTML: letters, digits, `_`, `-` and one dot."""
        if self.variant is None:
            return self.arm
        name = re.sub(r"[^A-Za-z0-9_-]", lambda sign: f"_{ord(sign[0]):x}", self.variant)
        if len(name) > LONGEST_KEY:  # or no file could have it
            name = f"{name[:LONGEST_KEY]}-{zlib.crc32(name.encode()):08x}"
        return f"{self.arm}.{name}"


def labelled(ticks: Iterable[float]) -> list[float]:
    """The ticks of a log axis that there is room to label: powers of two first, others where they are not too close."""
    chosen: list[float] = []
    for tick in sorted(ticks, key=lambda tick: (not math.log2(tick).is_integer(), tick)):
        if all(abs(math.log2(tick / other)) > 0.4 for other in chosen):
            chosen.append(tick)
    return chosen


class Comparison(NamedTuple):
    """Arm `a` minus arm `b`, paired by seed and test example, at the nesting dims that both have."""

    a: Series
    b: Series
    differences: list[Difference]
    crossover: Crossover
    tax: Difference | None  # b − a at full width: what nesting costs there; None where it was not measured

    @property
    def against(self) -> str:
        """What the second arm stands for: comparisons of one kind are shown together."""
        return f"minus {self.b.variant}" if self.a.arm == self.b.arm else f"minus {LABELS[self.b.arm]}"


@dataclass(frozen=True, eq=False)
class Run:
    """What a finished or interrupted run left behind."""

    directory: Path
    config: Config
    rows: list[MetricRow]
    dataset: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def started(self) -> tuple[datetime, str]:
        """Sorts runs by age; one without a readable time is the oldest."""
        try:
            time = datetime.fromisoformat(self.environment["started"])
        except (KeyError, TypeError, ValueError):
            time = datetime.min
        return (time if time.tzinfo else time.replace(tzinfo=UTC), str(self.directory))

    @functools.cached_property
    def members(self) -> dict[str, list[MetricRow]]:
        """The label of each member with results → its rows; post-hoc arms count as members."""
        found = defaultdict(list)
        for row in self.rows:
            found[_member(row)].append(row)
        return dict(found)

    def missing(self) -> list[str]:
        """The members that the configuration asks for and that have no results."""
        trained = arms.expand(self.config.arms, self.config.nesting_dims, self.config.loss.weights)
        names = [arm.label for arm in trained]
        names += [*arms.posthoc(self.config.arms), *arms.untuned(self.config.arms)]
        wanted = [f"{name}-seed{seed}" for seed in range(self.config.seeds) for name in names]
        return [label for label in wanted if label not in self.members]


@dataclass(eq=False)
class Study:
    """Runs that can be compared. Every array has the same seeds in the same order, and the same test examples."""

    name: str
    title: str
    series: tuple[Series, ...]
    dims: tuple[int, ...]  # the nesting dims, of all variants
    width: int  # the largest embedding width
    classes: tuple[str, ...]
    labels: np.ndarray  # int32 [n], of the test split; empty where no predictions were kept
    seeds: int
    notes: tuple[str, ...]  # sentences for the reader
    log: list[dict[str, Any]]  # the lines of all metrics.jsonl, each with its `variant`
    environment: list[dict[str, Any]]  # a mapping a run, with its `run`
    _values: Mapping[tuple[Series, str, str, int], np.ndarray] = field(repr=False)
    _files: Mapping[Series, Mapping[int | None, list[Path]]] = field(repr=False)  # width of a fixed-size model → [S]
    _cache: dict[tuple[Series, str], dict[int, np.ndarray]] = field(default_factory=dict, repr=False)
    _intervals: dict[tuple[Series, str], dict[int, Interval]] = field(default_factory=dict, repr=False)

    def find(self, arm: str, variant: str | None = None) -> Series | None:
        """The series of an arm, where the study has it."""
        return next((s for s in self.series if (s.arm, s.variant) == (arm, variant)), None)

    @property
    def variants(self) -> tuple[str | None, ...]:
        return tuple(dict.fromkeys(series.variant for series in self.series))

    @property
    def measures(self) -> tuple[str, ...]:
        """Those of `MEASURES` that some series has."""
        return tuple(m for m in MEASURES if any(self.values(series, m) for series in self.series))

    def values(self, series: Series, metric: str, split: str = "test") -> dict[int, np.ndarray]:
        """dim → float [S], one value a seed, ascending dims; empty where the metric was not measured."""
        found = {dim: v for (s, m, part, dim), v in self._values.items() if (s, m, part) == (series, metric, split)}
        return dict(sorted(found.items()))

    def outcomes(self, series: Series, metric: str) -> dict[int, np.ndarray]:
        """dim → float32 [S, n], per test example; dims for which some seed has none are left out."""
        return self._read(series, f"test/{metric}/")

    def intervals(self, series: Series, metric: str) -> dict[int, Interval]:
        """nesting dim → mean with its 95 % interval over seeds and test examples; empty with one seed or example."""
        if (series, metric) not in self._intervals:
            enough = self.seeds > 1 and len(self.labels) > 1
            at = {dim: v for dim, v in self.outcomes(series, metric).items() if enough and dim in self.dims}
            self._intervals[series, metric] = {dim: mean_interval(v) for dim, v in at.items()}
        return self._intervals[series, metric]

    def band(self, series: Series, metric: str) -> dict[int, tuple[float, float]]:
        """dim → lower and upper edge of a band around the mean; empty with one seed. Two seeds have so wide an interval
        that it would fill any plot: their band goes from one to the other."""
        if self.seeds < 3 or len(self.labels) < 2:
            values = self.values(series, metric) if self.seeds > 1 else {}
            return {dim: (float(v.min()), float(v.max())) for dim, v in values.items()}
        return {dim: (found.low, found.high) for dim, found in self.intervals(series, metric).items()}

    @property
    def bands(self) -> str:
        """What `band` shows."""
        return "95 % intervals over seeds and test examples" if self.seeds > 2 else "from the lower to the higher seed"

    def predictions(self, series: Series) -> dict[int, np.ndarray]:
        """dim → int32 [S, n], the class that the arm's own classifier predicted for each test example."""
        return self._read(series, "test/prediction/")

    def _read(self, series: Series, prefix: str) -> dict[int, np.ndarray]:
        if (series, prefix) not in self._cache:
            found: dict[int, np.ndarray] = {}
            for paths in self._files[series].values():
                each = [_arrays(path, prefix) for path in paths]
                for path, one in zip(paths, each, strict=True):
                    if any(array.shape != self.labels.shape for array in one.values()):
                        raise UserError(f"{path} has other test examples than the rest; delete it, or restore it")
                for dim in set.intersection(*(set(one) for one in each)):
                    found[dim] = np.stack([one[dim] for one in each])
            self._cache[series, prefix] = dict(sorted(found.items()))
        return self._cache[series, prefix]


def gather(paths: Sequence[Path]) -> Study:
    """The study of the runs at `paths`, each a run or a folder with runs below it.

    Raises:
        UserError: no run there, or none with results; two runs that cannot be compared; a damaged file.
    """
    notes: list[str] = []
    every = [_load(directory) for directory in _directories(paths)]
    used = sorted((run for run in every if run.rows), key=lambda run: run.started)
    if not used:
        raise UserError(
            f"{every[0].directory} has nothing to report yet: evaluation.csv is missing or empty"
            + ("" if len(every) == 1 else f", and so in the {len(every) - 1} other runs")
        )
    for run in used[1:]:
        _refuse(used[0], run)
    names = _names([run.directory for run in every])
    for run in every:
        if missing := run.missing():
            shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
            notes.append(f"{names[run.directory]} was cut short: no results of {shown}; resume=true continues it.")
    variants = _variants(used, names)
    chosen: dict[tuple[str | None, str], Run] = {}  # variant and member → the run that it is taken from
    for variant, pooled in variants.items():
        for run in pooled:  # oldest first
            twice = [label for label in run.members if (variant, label) in chosen]
            if twice:
                older = chosen[variant, twice[0]]
                notes.append(
                    f"{', '.join(twice[:6])}{' …' if len(twice) > 6 else ''}: in {names[older.directory]} and in "
                    f"{names[run.directory]}, which is newer and is used."
                )
            chosen |= {(variant, label): run for label in run.members}
    return _assemble(used, chosen, names, notes)


def _assemble(
    used: Sequence[Run],
    chosen: Mapping[tuple[str | None, str], Run],
    names: Mapping[Path, str],
    notes: list[str],
) -> Study:
    """The arrays of the study, from the member → run choice."""
    rows = [(variant, row) for (variant, label), run in chosen.items() for row in run.members[label]]
    present = {Series(row.arm, variant) for variant, row in rows}
    order = list(dict.fromkeys(variant for variant, _ in chosen))
    series = tuple(sorted(present, key=lambda s: (order.index(s.variant), list(LABELS).index(s.arm))))
    by_seed: dict[tuple[Series, str, str, int], dict[int, float]] = defaultdict(dict)
    for variant, row in rows:
        by_seed[Series(row.arm, variant), row.metric, row.split, row.dim][row.seed] = row.value
    dims = tuple(sorted({dim for run in used for dim in run.config.nesting_dims}))
    seeds = _shared_seeds(series, by_seed, dims, notes)
    values = {
        key: np.array([of[seed] for seed in seeds]) for key, of in by_seed.items() if all(seed in of for seed in seeds)
    }
    files = _prediction_files(series, chosen, seeds, notes)
    notes += _absent_arms(series)
    classes = any(metric == "linear_top1" for _, metric, _, _ in values)
    if classes and any(s.arm in arms.POSTHOC for s in series) and any(s.arm in NESTED for s in series):
        refitted = any(s.arm in NESTED and metric == "refit_top1" for s, metric, _, _ in values)
        notes.append(REFITTED if refitted else NOT_REFITTED)
    if len(seeds) == 1:
        notes.append("One seed: differences have no interval.")
    some = next((paths[0] for of in files.values() for paths in of.values()), None)
    dataset, experiments = used[0].dataset, list(dict.fromkeys(run.config.name for run in used))
    kept = {(variant, label) for variant, label in chosen if int(label.rpartition("-seed")[2]) in seeds}
    log = _log(chosen, kept, names, notes)
    return Study(
        name=", ".join(experiments),
        title=f"{', '.join(experiments)}: nested embeddings"
        + (" against fixed-size models" if any(s.arm == "ff" for s in series) else ""),
        series=series,
        dims=dims,
        width=max(run.config.width for run in used),
        classes=tuple(map(str, dataset["classes"])),
        labels=np.zeros(0, np.int32) if some is None else _labels(some, len(dataset["classes"])),
        seeds=len(seeds),
        notes=tuple(dict.fromkeys(notes)),
        log=log,
        environment=[{"run": names[run.directory], **run.environment} for run in used],
        _values=values,
        _files=files,
    )


def _prediction_files(
    series: Iterable[Series], chosen: Mapping[tuple[str | None, str], Run], seeds: Sequence[int], notes: list[str]
) -> dict[Series, dict[int | None, list[Path]]]:
    """Series → width of a fixed-size model, None for others → a file a seed; without those that some seed lacks."""
    files: dict[Series, dict[int | None, list[Path]]] = {}
    lost: list[Path] = []
    for s in series:
        files[s] = {}
        runs_of = {run for (variant, _), run in chosen.items() if variant == s.variant}
        widths = sorted({row.dim for run in runs_of for row in run.rows if row.arm == "ff"})
        for width in widths if s.arm == "ff" else [None]:
            labels = [f"{s.arm}{width or ''}-seed{seed}" for seed in seeds]
            if not all((s.variant, label) in chosen for label in labels):
                continue
            paths = [chosen[s.variant, label].directory / "predictions" / f"{label}.npz" for label in labels]
            absent = [path for path in paths if not path.is_file()]
            lost += absent
            if not absent:
                files[s][width] = paths
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        name = f"{lost[0].parent.parent.name}/predictions/{lost[0].name}"
        notes.append(f"predictions are missing ({name}{more}): what needs them is left out.")
    return files


def _absent_arms(series: Sequence[Series]) -> list[str]:
    """What is not shown because an arm was not trained: said once where that goes for all variants."""
    by_variant = {v: {s.arm for s in series if s.variant == v} for v in dict.fromkeys(s.variant for s in series)}
    lacking = {v: [arm for arm in BASELINES if arm not in present] for v, present in by_variant.items()}
    notes = []
    for variant, present in by_variant.items():
        everywhere = all(arms == lacking[variant] for arms in lacking.values())
        where = "" if variant is None or everywhere else f" in {variant}"
        nested = [LABELS[arm] for arm in NESTED[:2] if arm in present] or ["MRL"]
        if not present & set(NESTED):
            notes.append(f"No nested arm ({', '.join(NESTED)}){where}: there is nothing to compare.")
            continue
        for arm in lacking[variant]:
            lost = ", ".join(f"{a} − {LABELS[arm]}" for a in nested)
            notes.append(f"No {arm} arm{where}: {lost} {'is' if len(nested) == 1 else 'are'} not shown.")
    return list(dict.fromkeys(notes))


def _shared_seeds(
    series: Iterable[Series],
    by_seed: Mapping[tuple[Series, str, str, int], Mapping[int, float]],
    dims: Sequence[int],
    notes: list[str],
) -> list[int]:
    """The seeds that all series have, so that every comparison is paired. A series has a seed that lacks none of the
    dims that its most complete seed has at all, by any metric."""
    have: dict[Series, set[int]] = {}
    for s in series:
        places = defaultdict(set)  # seed → dims
        for (of, _, split, dim), value in by_seed.items():
            if of == s and split == "test" and dim in dims:
                for seed in value:
                    places[seed].add(dim)
        most = max((len(found) for found in places.values()), default=0)
        have[s] = {seed for seed, found in places.items() if len(found) == most}
    shared = sorted(set.intersection(*have.values()))
    if not shared:
        listed = "; ".join(f"{s.label}: {', '.join(map(str, sorted(of)))}" for s, of in have.items())
        raise UserError(f"the arms share no seed, so that they cannot be compared: {listed}")
    dropped = sorted(set.union(*have.values()) - set(shared))
    if dropped:
        notes.append(
            f"Comparisons are paired by seed: only what all arms have is used, {_seeds(shared)}; "
            f"{_seeds(dropped)} of some arms left out."
        )
    return shared


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _directories(paths: Sequence[Path]) -> list[Path]:
    """The run directories at or below `paths`, each once; links below a path are not followed."""
    found: dict[Path, None] = {}
    for path in paths:
        none = True
        for folder, below, names in os.walk(Path(path).resolve()):
            below[:] = sorted(name for name in below if not name.startswith("."))
            if "config.yaml" in names:
                found[Path(folder)] = None
                none = False
                below.clear()
        if none:
            raise UserError(f"{path} has no run: there is no config.yaml in it or in a folder below it")
    return list(found)


def _load(directory: Path) -> Run:
    config = configuration.from_yaml(directory / "config.yaml")
    rows = runs.read_rows(directory / "evaluation.csv")
    for row in rows:
        if row.arm not in LABELS:
            raise UserError(f"{directory / 'evaluation.csv'}: unknown arm {row.arm!r}; known: {', '.join(LABELS)}")
        if row.seed < 0 or not 1 <= row.dim <= config.width or abs(row.value) > MOST:
            raise UserError(f"{directory / 'evaluation.csv'} is damaged: no run has {','.join(map(str, row))}")
    if len({row[:-1] for row in rows}) < len(rows):
        raise UserError(f"{directory / 'evaluation.csv'} is damaged: it gives a value twice")
    dataset = runs.read_dataset(directory) if rows else {}
    for key in ("fingerprint", "examples") if rows else ():
        if not isinstance(dataset.get(key), dict):
            raise UserError(f"{directory / 'dataset.json'} is damaged: it lacks {key}")
    if rows and not (type(count := dataset["examples"].get("train")) is int and 0 <= count < 2**53):
        raise UserError(f"{directory / 'dataset.json'} is damaged: it lacks the number of training examples")
    try:
        environment = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        environment = {}
    return Run(directory, config, rows, dataset, environment if isinstance(environment, dict) else {})


def _refuse(first: Run, other: Run) -> None:
    """Raise `UserError` when two runs were not given the same data, steps and batches."""
    fingerprints = [run.dataset["fingerprint"] for run in (first, other)]
    differ = [split for split in ("train", "validation", "test") if len({str(f.get(split)) for f in fingerprints}) > 1]
    said = f"{first.directory} and {other.directory} cannot be compared"
    if first.dataset["classes"] != other.dataset["classes"]:
        counts = [len(run.dataset["classes"]) for run in (first, other)]
        raise UserError(f"{said}: their classes differ ({counts[0]} and {counts[1]} of them, dataset.json)")
    if differ:
        raise UserError(f"{said}: their {' and '.join(differ)} data differ (fingerprint in dataset.json)")
    for key, a, b in (
        ("steps", *(run.config.trainer.total_steps(run.dataset["examples"]["train"]) for run in (first, other))),
        ("trainer.batch_size", first.config.trainer.batch_size, other.config.trainer.batch_size),
    ):
        if a != b:
            raise UserError(f"{said}: {key} is {a:,} in one and {b:,} in the other")


def _variants(used: Sequence[Run], names: Mapping[Path, str]) -> dict[str | None, list[Run]]:
    """The runs by variant, named after the oldest run of each; None where there is only one variant."""
    groups: list[list[Run]] = []
    for run in used:
        for group in groups:
            changed = configuration.differences(group[0].config, run.config)
            if {line.partition("=")[0] for line in changed} <= SAME_VARIANT:
                group.append(run)
                break
        else:
            groups.append([run])
    if len(groups) == 1:
        return {None: groups[0]}
    return dict(zip(_short([names[group[0].directory] for group in groups]), groups, strict=True))


def _short(names: Sequence[str]) -> list[str]:
    """Names of variants for labels: without a `key=` that all of them begin with, long ones abridged in the middle."""
    keys = {name.partition("=")[:2] for name in names}
    values = (
        [name.partition("=")[2] for name in names] if len(keys) == 1 and "" not in next(iter(keys)) else list(names)
    )
    abridged = [value if len(value) <= 24 else f"{value[:12]}…{value[-8:]}" for value in values]
    return abridged if len(set(abridged)) == len(names) and all(abridged) else list(names)


def _names(directories: Sequence[Path]) -> dict[Path, str]:
    """Each run's folder name, with as many folders above it as tell all runs apart."""
    depth = 1
    while len({directory.parts[-depth:] for directory in directories}) < len(directories):
        depth += 1
    return {directory: "/".join(directory.parts[-depth:]) for directory in directories}


def _member(row: MetricRow) -> str:
    return f"{row.arm}{row.dim if row.arm == 'ff' else ''}-seed{row.seed}"


def _log(
    chosen: Mapping[tuple[str | None, str], Run],
    kept: set[tuple[str | None, str]],
    names: Mapping[Path, str],
    notes: list[str],
) -> list[dict[str, Any]]:
    """The lines of the members that are used, run by run."""
    lines = []
    for variant, run in dict.fromkeys((variant, run) for (variant, _), run in chosen.items()):
        damaged = 0
        for line in runs.Log(run.directory / "metrics.jsonl").read():
            if not _is_entry(line):
                damaged += 1
            elif (place := (variant, line["member"])) in kept and chosen[place] is run:
                lines.append({**line, "variant": variant})
        if damaged:
            notes.append(f"{names[run.directory]}: {damaged} damaged lines of metrics.jsonl are left out.")
    return lines


def _is_entry(line: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is what training writes, as far as it is read here."""
    names = all(isinstance(line.get(key), str) for key in ("member", "split", "arm"))
    numbers = [line.get("step"), line.get("seed"), line.get("width", 0)]
    measured = [line.get(key, {}) for key in ("loss", "accuracy")]
    return (
        names
        and all(type(number) is int and 0 <= number < 2**53 for number in numbers)
        and _is_number(line.get("examples_per_second", 0))
        and all(isinstance(of, dict) for of in measured)
        and all(dim.isdecimal() and _is_number(value) for of in measured for dim, value in of.items())
        and (line["split"] != "validation" or "accuracy" in line)
    )


def _is_number(value: object) -> bool:
    """Nan, of training that went astray, is one."""
    return type(value) in (int, float) and not abs(cast(float, value)) > MOST


def _labels(path: Path, classes: int) -> np.ndarray:
    """The classes of the test examples, int32 [n]; zeros where there are none."""
    labels = _arrays(path, "test/label")[None]
    if labels.dtype.kind not in "iu" or (len(labels) and not 0 <= labels.min() <= labels.max() < max(1, classes)):
        raise UserError(f"{path} is damaged: its labels are not those of the {classes:,} classes in dataset.json")
    return labels.astype(np.int32)


def _arrays(path: Path, prefix: str) -> dict[Any, np.ndarray]:
    """The arrays of a predictions file whose keys are `prefix` and a dim, by dim; by None when nothing follows.

    All have the length of the labels, which are classes; the others hold finite numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = file.zip.infolist()
            check_expansion(path, path.stat().st_size, sum(entry.file_size for entry in entries))
            found = {key[len(prefix) :]: file[key] for key in file.files if key.startswith(prefix)}
            arrays = {int(key) if key else None: array for key, array in found.items()}
            count = len(file["test/label"])
    except (*DAMAGED, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, or restore it from a copy") from None
    for dim, array in arrays.items():
        if array.shape != (count,) or array.dtype.kind not in "iufb" or not np.isfinite(array).all():
            raise UserError(
                f"{path} is damaged: {prefix}{dim or ''} does not hold a number for each of {count:,} labels"
            )
    return arrays
