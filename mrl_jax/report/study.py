"""A study: runs that can be compared, read arm by arm. `gather` makes it of the files of runs."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrl_jax.arms import ARMS
from mrl_jax.evaluate import metrics as table
from mrl_jax.report import validate
from mrl_jax.report.statistics import Interval, mean_interval
from mrl_jax.system.errors import UserError

MAX_KEY_CHARACTERS = 120  # of a variant in a file's name


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
