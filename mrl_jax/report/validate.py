"""The files of runs, read with suspicion: what is damaged, or cannot be compared, is a `UserError` that names it."""

import functools
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from mrl_jax import arms, runs
from mrl_jax import config as configuration
from mrl_jax.arms import ARMS
from mrl_jax.config import Config
from mrl_jax.data.readers.arrays import DAMAGED
from mrl_jax.data.readers.records import check_expansion
from mrl_jax.runs import MetricRow
from mrl_jax.system.errors import UserError, nearest

MAX_VALUE = 1e15  # no measurement is larger


class Tuned(NamedTuple):
    """The settings that an arm was trained with, chosen on validation: an entry of tuned.json."""

    arm: str
    width: int | None  # of a fixed-size arm
    settings: Mapping[str, float | None]  # None: no bound
    trial: int  # 0: the configured settings
    trials: int  # settings that were drawn
    validation: float  # of the chosen settings; the score that chose them, so optimistic
    configured: float | None  # of the configured settings; None: they diverge
    within_standard_error: int  # settings that the validation examples cannot tell from the best, it included
    expected_best: Sequence[float]  # of 1, 2, … drawn settings


@dataclass(frozen=True, eq=False)
class Run:
    """What a finished or interrupted run left behind."""

    directory: Path
    config: Config
    rows: list[MetricRow]
    dataset: Mapping[str, Any]
    environment: Mapping[str, Any]
    tuned: tuple[Tuned, ...] = ()

    @property
    def started(self) -> tuple[datetime, str]:
        """Sorts runs by age; one without a readable time is the oldest."""
        try:
            time = datetime.fromisoformat(self.environment["started"])
        except (KeyError, TypeError, ValueError):
            time = datetime.min
        return (time if time.tzinfo else time.replace(tzinfo=UTC), str(self.directory))

    @property
    def zero_shot(self) -> bool:
        """Whether this is an evaluation by `python -m mrl_jax.evaluate`, which trained nothing."""
        return bool(self.dataset.get("zero_shot"))

    @functools.cached_property
    def members(self) -> dict[str, list[MetricRow]]:
        """The label of each member with results → its rows; post-hoc arms count as members."""
        members = defaultdict(list)
        for row in self.rows:
            width = row.dim if ARMS[row.arm].origin == "fixed" else ""
            members[f"{row.arm}{width}-seed{row.seed}"].append(row)
        return dict(members)

    def missing(self) -> list[str]:
        """The members that the configuration asks for and that have no results; an evaluation has all or none."""
        if self.rows and self.zero_shot:
            return []
        trained = self.config.population
        names = [arm.label for arm in trained]
        names += [*arms.posthoc(self.config.arms), *arms.untuned(self.config.arms)]
        wanted = [f"{name}-seed{seed}" for seed in range(self.config.seeds) for name in names]
        return [label for label in wanted if label not in self.members]


def run_directories(paths: Sequence[Path]) -> list[Path]:
    """The run directories at or below `paths`, each once; links below a path are not followed.

    Raises:
        UserError: a path without a run.
    """
    directories: dict[Path, None] = {}
    for path in paths:
        below_path = []
        for folder, below, names in os.walk(Path(path).resolve()):
            below[:] = sorted(name for name in below if not name.startswith("."))
            if "config.yaml" in names and "sources" in below:
                listed = " ".join(str(place) for place in runs.folders(Path(folder)))
                raise UserError(f"{folder} was trained on several sources, each with a report of its own: {listed}")
            if "config.yaml" in names:
                below_path.append(Path(folder))
                below.clear()
        if not below_path:
            raise UserError(f"{path} has no run: there is no config.yaml in it or in a folder below it")
        directories |= dict.fromkeys(below_path)
    return list(directories)


def load_run(directory: Path) -> Run:
    """The run in a folder. An environment.json that cannot be read counts as an empty one.

    Raises:
        UserError: another of its files is missing or damaged, or evaluation.csv has an arm that is not in `ARMS`.
    """
    config = configuration.from_yaml(directory / "config.yaml")
    rows = metric_rows(directory)
    for row in rows:
        if row.seed < 0 or not 1 <= row.dim <= config.width or abs(row.value) > MAX_VALUE:
            raise UserError(
                f"{directory / 'evaluation.csv'} is damaged: invalid row {','.join(map(str, row))} (a seed is at least "
                f"0, a dim in 1…{config.width}, a value in ±{MAX_VALUE:g})"
            )
    dataset = runs.read_dataset(directory) if rows else _read_object(directory / "dataset.json")
    for key in ("fingerprint", "examples") if rows else ():
        if not isinstance(dataset.get(key), dict):
            raise UserError(f"{directory / 'dataset.json'} is damaged: it lacks {key}")
    if rows and not (type(count := dataset["examples"].get("train")) is int and 0 <= count < 2**53):
        raise UserError(f"{directory / 'dataset.json'} is damaged: it lacks the number of training examples")
    return Run(directory, config, rows, dataset, _read_object(directory / "environment.json"), _tuned(directory))


def _tuned(directory: Path) -> tuple[Tuned, ...]:
    """What tuned.json says; nothing where there is none. Raises `UserError` for a damaged one."""
    path = directory / "tuned.json"
    if not path.exists():
        return ()
    try:
        entries = tuple(
            Tuned(**{field: entry[field] for field in Tuned._fields}) for entry in _read_object(path).values()
        )
        good = entries and all(map(_is_tuned, entries))
    except (KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f"{path} is damaged; delete it, and resume=true writes it again")
    return entries


def _is_tuned(entry: Tuned) -> bool:
    counts = (entry.trial, entry.trials, entry.within_standard_error)
    scores = (entry.validation, *([] if entry.configured is None else [entry.configured]), *entry.expected_best)
    settings = entry.settings.items() if isinstance(entry.settings, dict) else [(None, None)]
    return (
        entry.arm in ARMS
        and (entry.width is None or type(entry.width) is int)
        and all(type(count) is int and 0 <= count < 2**53 for count in counts)
        and all(_is_number(score) and abs(score) <= MAX_VALUE for score in scores)
        and all(isinstance(key, str) and (value is None or _is_number(value)) for key, value in settings)
    )


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def metric_rows(directory: Path) -> list[MetricRow]:
    """The rows of a run's evaluation.csv, all of known arms and none twice; an absent file has none."""
    path = directory / "evaluation.csv"
    rows = runs.read_rows(path)
    for row in rows:
        if row.arm not in ARMS:
            raise UserError(f"{path}: unknown arm {row.arm!r}{nearest(row.arm, ARMS)}; known: {', '.join(ARMS)}")
    if len({row[:-1] for row in rows}) < len(rows):
        raise UserError(f"{path} is damaged: it gives a value twice")
    return rows


def check_comparable(first: Run, other: Run) -> None:
    """Raise `UserError` when two runs were not given the same data, steps and batches."""
    fingerprints = [run.dataset["fingerprint"] for run in (first, other)]
    differ = [split for split in ("train", "validation", "test") if len({str(f.get(split)) for f in fingerprints}) > 1]
    both = f"{first.directory} and {other.directory} cannot be compared"
    if first.dataset["classes"] != other.dataset["classes"]:
        counts = [len(run.dataset["classes"]) for run in (first, other)]
        raise UserError(f"{both}: their classes differ ({counts[0]} and {counts[1]} of them, dataset.json)")
    if differ:
        raise UserError(f"{both}: their {' and '.join(differ)} data differ (fingerprint in dataset.json)")
    for key, a, b in (
        ("steps", *(run.config.trainer.total_steps(run.dataset["examples"]["train"]) for run in (first, other))),
        ("trainer.batch_size", first.config.trainer.batch_size, other.config.trainer.batch_size),
    ):
        if a != b:
            raise UserError(f"{both}: {key} is {a:,} in one and {b:,} in the other")


def log_lines(directory: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of metrics.jsonl that are as training writes them, and the number of those that are not."""
    run, source = runs.run_of(directory)
    lines = list(runs.Log(run / "metrics.jsonl").read())
    if source is not None:
        lines = [_of_source(line, source) for line in lines if line["split"] == "validation"]
    good = [line for line in lines if _is_log_line(line)]
    return good, len(lines) - len(good)


def _of_source(line: dict[str, Any], source: str) -> dict[str, Any]:
    """A line of the log with the scores of one source."""
    of = line.get("sources")
    own = of.get(source) if isinstance(of, dict) else None
    return {**line, **own} if isinstance(own, dict) else {}


def _is_log_line(line: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is what training writes, as far as it is read here."""
    names = all(isinstance(line.get(key), str) for key in ("member", "split", "arm"))
    numbers = [line.get("step"), line.get("seed"), line.get("width", 0)]
    measured = [line.get(key, {}) for key in ("loss", "accuracy")]
    return (
        names
        and line["arm"] in ARMS
        and all(type(number) is int and 0 <= number < 2**53 for number in numbers)
        and _is_number(line.get("examples_per_second", 0))
        and all(isinstance(of, dict) for of in measured)
        and all(dim.isdecimal() and _is_number(value) for of in measured for dim, value in of.items())
        and (line["split"] != "validation" or "accuracy" in line)
    )


def _is_number(value: object) -> bool:
    """Nan, of training that went astray, is one."""
    return type(value) in (int, float) and not abs(cast(float, value)) > MAX_VALUE


def labels_of(path: Path, classes: int) -> np.ndarray:
    """The classes of the test examples of a predictions file, int32 [n]; zeros where there are none."""
    labels = arrays(path, "test/label")[None]
    if labels.dtype.kind not in "iu" or (len(labels) and not 0 <= labels.min() <= labels.max() < max(1, classes)):
        raise UserError(f"{path} is damaged: its labels are not those of the {classes:,} classes in dataset.json")
    return labels.astype(np.int32)


def arrays(path: Path, prefix: str, partial: bool = False) -> dict[Any, np.ndarray]:
    """The arrays of a predictions file whose keys are `prefix` and a dim, by dim; by None when nothing follows.

    All have the length of the labels, which are classes; the others hold finite numbers or, where they are `partial`,
    nan.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = file.zip.infolist()
            check_expansion(path, path.stat().st_size, sum(entry.file_size for entry in entries))
            stored = {key[len(prefix) :]: file[key] for key in file.files if key.startswith(prefix)}
            by_dim = {int(key) if key else None: array for key, array in stored.items()}
            count = len(file["test/label"])
    except (*DAMAGED, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, or restore it from a copy") from None
    for dim, array in by_dim.items():
        fine = array.dtype.kind in "iufb" and (np.isfinite(array) | (partial & np.isnan(array))).all()
        if array.shape != (count,) or not fine:
            raise UserError(
                f"{path} is damaged: {prefix}{dim or ''} does not hold a number for each of {count:,} labels"
            )
    return by_dim
