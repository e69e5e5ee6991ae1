"""A study: any number of runs gathered, checked to be comparable, and read arm by arm.

Runs that differ only in what cannot change a model (arms, seeds, names, how the population was scheduled) are pooled as
one variant; runs that differ in other keys become variants of their own, so that one arm can be compared between them.
What cannot be compared is refused: other data, another number of steps, another batch size.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrl_jax import config as configuration
from mrl_jax.arms import ARMS, names_of
from mrl_jax.evaluate import metrics as table
from mrl_jax.report import labels, validate
from mrl_jax.report.statistics import Interval, mean_interval
from mrl_jax.report.validate import Run
from mrl_jax.system.errors import UserError

REFITTED = "Against arms compressed after training, nested arms are read by a refitted classifier too (refit_top1)."
NOT_REFITTED = "Compressed arms have refitted classifiers, nested arms their own: there is no refit_top1."
MAX_KEY_CHARACTERS = 120  # of a variant in a file's name
MAX_NOTED = 6  # members or metrics that a note lists

# Keys that do not make another variant: they leave every model as it is, or are checked on their own (the steps).
SAME_VARIANT = {
    "name", "arms", "seeds", "run", "resume", "results_dir",
    "trainer.population", "trainer.arms_at_once", "trainer.checkpoint_seconds", "trainer.log_every",
    "trainer.steps", "trainer.epochs",
    "evaluation.interpolated", "evaluation.dims", "evaluation.neighbours", "evaluation.quantised",
    "evaluation.quantised_search", "evaluation.batch_size", "evaluation.cascade", "evaluation.few_shot",
    "evaluation.by_frequency", "evaluation.corruption",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line in the plots: an arm of one configuration."""

    arm: str
    variant: str | None = None  # None when all gathered runs share one configuration

    @property
    def name(self) -> str:
        """The arm's label, without the variant."""
        return ARMS[self.arm].label

    @property
    def label(self) -> str:
        return self.name + ("" if self.variant is None else f" · {self.variant}")

    @property
    def key(self) -> str:
        """The label for file names and HTML: letters, digits, `_`, `-` and one dot."""
        if self.variant is None:
            return self.arm
        name = re.sub(r"[^A-Za-z0-9_-]", lambda character: f"_{ord(character[0]):x}", self.variant)
        if len(name) > MAX_KEY_CHARACTERS:  # or no file could have it
            name = f"{name[:MAX_KEY_CHARACTERS]}-{zlib.crc32(name.encode()):08x}"
        return f"{self.arm}.{name}"

    @property
    def origin(self) -> Literal["nested", "fixed", "compressed", "untuned", "classical"]:
        return ARMS[self.arm].origin

    @property
    def baseline(self) -> bool:
        """Whether nested arms are compared with it."""
        return ARMS[self.arm].baseline

    @property
    def main(self) -> bool:
        """Whether it stands in comparisons, on either side."""
        return self.origin == "nested" or self.baseline


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
    environment: list[dict[str, Any]]  # one mapping per run, with its `run`
    _values: Mapping[tuple[Series, str, str, int], np.ndarray] = field(repr=False)
    _files: Mapping[Series, Mapping[int | None, list[Path]]] = field(repr=False)  # width of a fixed-size model → [S]
    # By series and fixed width, where settings were chosen for it.
    tuned: Mapping[tuple[Series, int | None], validate.Tuned] = field(default_factory=dict)
    _cache: dict[tuple[Series, str], dict[int, np.ndarray]] = field(default_factory=dict, repr=False)
    _parts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # of partial metrics: bool [n]
    _intervals: dict[tuple[Series, str], dict[int, Interval]] = field(default_factory=dict, repr=False)

    def find(self, arm: str, variant: str | None = None) -> Series | None:
        """The series of an arm, where the study has it."""
        return next((s for s in self.series if (s.arm, s.variant) == (arm, variant)), None)

    def of_origin(self, *origins: str) -> list[Series]:
        """The series whose arms come to be in one of these ways."""
        return [s for s in self.series if s.origin in origins]

    @property
    def variants(self) -> tuple[str | None, ...]:
        return tuple(dict.fromkeys(series.variant for series in self.series))

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics of the test split that arms are compared by."""
        return tuple(name for name in self.metrics if (metric := table.find(name)) and metric.compared)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric of the test split, in the order of the table of metrics."""
        return tuple(table.ordered(metric for _, metric, split, _ in self._values if split == "test"))

    def values(self, series: Series, metric: str, split: str = "test") -> dict[int, np.ndarray]:
        """dim → float [S], one value per seed, ascending dims; empty where the metric was not measured."""
        by_dim = {dim: v for (s, m, part, dim), v in self._values.items() if (s, m, part) == (series, metric, split)}
        return self._along_dims(series, by_dim)

    def _along_dims(self, series: Series, by_dim: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Sorted; a baseline without an embedding has the same numbers at every dim, to be compared with each."""
        if by_dim and series.origin == "classical":
            return dict.fromkeys(self.dims, by_dim[max(by_dim)])
        return dict(sorted(by_dim.items()))

    def outcomes(self, series: Series, metric: str) -> dict[int, np.ndarray]:
        """dim → float32 [S, n], per test example (of a partial metric: per example of its part); dims for which some
        seed has none are left out."""
        return self._read(series, f"test/{metric}/")

    def intervals(self, series: Series, metric: str) -> dict[int, Interval]:
        """nesting dim → mean with its 95 % interval over seeds and test examples; empty with one seed or example."""
        if (series, metric) not in self._intervals:
            outcomes = self.outcomes(series, metric) if self.seeds > 1 else {}
            at = {dim: v for dim, v in outcomes.items() if v.shape[1] > 1 and dim in self.dims}
            self._intervals[series, metric] = {dim: mean_interval(v) for dim, v in at.items()}
        return self._intervals[series, metric]

    def band(self, series: Series, metric: str) -> dict[int, tuple[float, float]]:
        """dim → lower and upper edge of a band around the mean; empty with one seed. Two seeds have so wide an interval
        that it would fill any plot: their band goes from one to the other."""
        if self.seeds < 3 or len(self.labels) < 2:
            values = self.values(series, metric) if self.seeds > 1 else {}
            return {dim: (float(v.min()), float(v.max())) for dim, v in values.items()}
        return {dim: (interval.low, interval.high) for dim, interval in self.intervals(series, metric).items()}

    @property
    def bands(self) -> str:
        """What `band` shows."""
        return "95 % intervals over seeds and test examples" if self.seeds > 2 else "from the lower to the higher seed"

    def predictions(self, series: Series) -> dict[int, np.ndarray]:
        """dim → int32 [S, n], the class that the arm's own classifier predicted for each test example."""
        return self._read(series, "test/prediction/")

    def _read(self, series: Series, prefix: str) -> dict[int, np.ndarray]:
        if (series, prefix) not in self._cache:
            by_dim: dict[int, np.ndarray] = {}
            metric = table.find(prefix.split("/")[1])
            partial = metric is not None and metric.partial
            for paths in self._files[series].values():
                each = [validate.arrays(path, prefix, partial) for path in paths]
                for path, one in zip(paths, each, strict=True):
                    if any(array.shape != self.labels.shape for array in one.values()):
                        raise UserError(f"{path} has other test examples than the rest; delete it, or restore it")
                for dim in set.intersection(*(set(one) for one in each)):
                    stacked = np.stack([one[dim] for one in each])
                    by_dim[dim] = self._part(paths[0], prefix, stacked) if partial else stacked
            self._cache[series, prefix] = self._along_dims(series, by_dim)
        return self._cache[series, prefix]

    def _part(self, path: Path, prefix: str, outcomes: np.ndarray) -> np.ndarray:
        """The outcomes [S, n] of the examples that a partial metric is about, which are the same for every series."""
        part = self._parts.setdefault(prefix, ~np.isnan(outcomes[0]))
        if (np.isnan(outcomes) == part).any():
            raise UserError(f"{path} has {prefix} of other test examples than the rest; delete it, or restore it")
        return outcomes[:, part]


def gather(paths: Sequence[Path]) -> Study:
    """The study of the runs at `paths`, each a run or a folder with runs below it.

    Raises:
        UserError: no run there, or none with results; two runs that cannot be compared; a damaged file.
    """
    notes: list[str] = []
    every = [validate.load_run(directory) for directory in validate.run_directories(paths)]
    used = sorted((run for run in every if run.rows), key=lambda run: run.started)
    if not used:
        raise UserError(
            f"{every[0].directory} has nothing to report yet: evaluation.csv is missing or empty"
            + ("" if len(every) == 1 else f", and so in the {len(every) - 1} other runs")
        )
    for run in used[1:]:
        validate.check_comparable(used[0], run)
    names = labels.run_names([run.directory for run in every])
    for run in every:
        if missing := run.missing():
            again = "evaluate once more" if run.zero_shot else "resume=true continues it"
            notes.append(f"{names[run.directory]} was cut short: no results of {_first_few(missing)}; {again}.")
    chosen: dict[tuple[str | None, str], Run] = {}  # variant and member → the run that it is taken from
    for variant, pooled in _variants(used, names).items():
        for run in pooled:  # oldest first
            twice = [label for label in run.members if (variant, label) in chosen]
            if twice:
                older = chosen[variant, twice[0]]
                notes.append(
                    f"{', '.join(twice[:MAX_NOTED])}{' …' if len(twice) > MAX_NOTED else ''}: in "
                    f"{names[older.directory]} and in {names[run.directory]}, which is newer and is used."
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
    variants, order = list(dict.fromkeys(variant for variant, _ in chosen)), list(ARMS)
    series = tuple(sorted(present, key=lambda s: (variants.index(s.variant), order.index(s.arm))))
    by_seed: dict[tuple[Series, str, str, int], dict[int, float]] = defaultdict(dict)
    for variant, row in rows:
        by_seed[Series(row.arm, variant), row.metric, row.split, row.dim][row.seed] = row.value
    dims = tuple(sorted({dim for run in used for dim in run.config.nesting_dims}))
    seeds = _shared_seeds(series, by_seed, dims, notes)
    complete = {key for key, of in by_seed.items() if all(seed in of for seed in seeds)}
    partial = dict.fromkeys(f"{metric} of {s.label}" for s, metric, _, _ in by_seed.keys() - complete)
    if partial:
        notes.append(f"Not measured for every seed, and left out there: {_first_few(sorted(partial))}.")
    values = {key: np.array([of[seed] for seed in seeds]) for key, of in by_seed.items() if key in complete}
    files = _prediction_files(series, chosen, seeds, notes)
    notes += _absent_arms(series)
    classes = any(metric == "linear_top1" for _, metric, _, _ in values)
    if classes and {"compressed", "nested"} <= {s.origin for s in series}:
        refitted = any(s.origin == "nested" and metric == "refit_top1" for s, metric, _, _ in values)
        notes.append(REFITTED if refitted else NOT_REFITTED)
    if len(seeds) == 1:
        notes.append("One seed: differences have no interval.")
    path = next((paths[0] for of in files.values() for paths in of.values()), None)
    dataset, experiments = used[0].dataset, list(dict.fromkeys(run.config.name for run in used))
    members = {(variant, label) for variant, label in chosen if int(label.rpartition("-seed")[2]) in seeds}
    log = _log(chosen, members, names, notes)
    return Study(
        name=", ".join(experiments),
        title=f"{', '.join(experiments)}: nested embeddings"
        + (" against fixed-size models" if any(s.origin == "fixed" for s in series) else ""),
        series=series,
        dims=dims,
        width=max(run.config.width for run in used),
        classes=tuple(map(str, dataset["classes"])),
        labels=np.zeros(0, np.int32) if path is None else validate.labels_of(path, len(dataset["classes"])),
        seeds=len(seeds),
        notes=tuple(dict.fromkeys(notes)),
        log=log,
        environment=[{"run": names[run.directory], **run.environment} for run in used],
        tuned={
            (Series(entry.arm, variant), entry.width): entry
            for (variant, _), run in chosen.items()
            for entry in run.tuned
            if Series(entry.arm, variant) in present
        },
        _values=values,
        _files=files,
    )


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NOTED]) + (f" and {len(names) - MAX_NOTED} more" if len(names) > MAX_NOTED else "")


def _prediction_files(
    series: Iterable[Series], chosen: Mapping[tuple[str | None, str], Run], seeds: Sequence[int], notes: list[str]
) -> dict[Series, dict[int | None, list[Path]]]:
    """Series → width of a fixed-size model, None for others → one file per seed; without those that a seed lacks."""
    files: dict[Series, dict[int | None, list[Path]]] = {}
    lost: list[Path] = []
    for s in series:
        files[s] = {}
        runs_of = {run for (variant, _), run in chosen.items() if variant == s.variant}
        widths = sorted({row.dim for run in runs_of for row in run.rows if row.arm == s.arm})
        for width in widths if s.origin == "fixed" else [None]:
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
    nested = names_of("nested")
    baselines = [name for name in names_of("fixed", "compressed") if ARMS[name].baseline]
    by_variant = {v: {s.arm for s in series if s.variant == v} for v in dict.fromkeys(s.variant for s in series)}
    lacking = {v: [arm for arm in baselines if arm not in present] for v, present in by_variant.items()}
    notes = []
    for variant, present in by_variant.items():
        everywhere = all(arms == lacking[variant] for arms in lacking.values())
        where = "" if variant is None or everywhere else f" in {variant}"
        if not present & set(nested):
            notes.append(f"No nested arm ({', '.join(nested)}){where}: there is nothing to compare.")
            continue
        compared = [ARMS[arm].label for arm in nested if arm in present]
        for arm in lacking[variant]:
            lost = ", ".join(f"{label} − {ARMS[arm].label}" for label in compared)
            notes.append(f"No {arm} arm{where}: {lost} {'is' if len(compared) == 1 else 'are'} not shown.")
    return list(dict.fromkeys(notes))


def _shared_seeds(
    series: Iterable[Series],
    by_seed: Mapping[tuple[Series, str, str, int], Mapping[int, float]],
    dims: Sequence[int],
    notes: list[str],
) -> list[int]:
    """The seeds that all series have, so that every comparison is paired. A series has a seed that lacks none of the
    dims that its most complete seed has at all, by any metric."""
    seeds_of: dict[Series, set[int]] = {}
    for s in series:
        dims_of = defaultdict(set)  # seed → dims
        for (of, _, split, dim), value in by_seed.items():
            if of == s and split == "test" and dim in dims:
                for seed in value:
                    dims_of[seed].add(dim)
        most = max((len(measured) for measured in dims_of.values()), default=0)
        seeds_of[s] = {seed for seed, measured in dims_of.items() if len(measured) == most}
    shared = sorted(set.intersection(*seeds_of.values()))
    if not shared:
        listed = "; ".join(f"{s.label}: {', '.join(map(str, sorted(of)))}" for s, of in seeds_of.items())
        raise UserError(f"the arms share no seed, so that they cannot be compared: {listed}")
    dropped = sorted(set.union(*seeds_of.values()) - set(shared))
    if dropped:
        notes.append(
            f"Comparisons are paired by seed: only what all arms have is used, {_seeds(shared)}; "
            f"{_seeds(dropped)} of some arms left out."
        )
    return shared


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


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
    return dict(zip(labels.short([names[group[0].directory] for group in groups]), groups, strict=True))


def _log(
    chosen: Mapping[tuple[str | None, str], Run],
    members: set[tuple[str | None, str]],
    names: Mapping[Path, str],
    notes: list[str],
) -> list[dict[str, Any]]:
    """The lines of `members`, run by run."""
    lines = []
    for variant, run in dict.fromkeys((variant, run) for (variant, _), run in chosen.items()):
        good, damaged = validate.log_lines(run.directory)
        taken = {label for place, label in members if place == variant and chosen[place, label] is run}
        lines += [{**line, "variant": variant} for line in good if line["member"] in taken]
        if damaged:
            notes.append(f"{names[run.directory]}: {damaged} damaged lines of metrics.jsonl are left out.")
    return lines
