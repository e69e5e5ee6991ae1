"""What every data source delivers (`Dataset`), what is asked of it (`DataConfig`), and the one rule for subsets.

Texts are a list of str, images uint8 `[n, h, w, c]`, features float32 `[n, d]`; labels are int32 `[n]`, indices into
`classes`. Images too many for memory are a lazy object with `__len__`, `__getitem__(int array)` and `subset`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from mrl_jax.errors import UserError

SPLIT_SEED = 0x5EED  # of the validation cut: never the training seed, so that every seed is validated on the same rows


@runtime_checkable
class LazyInputs(Protocol):
    """Inputs that are read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The inputs at these rows, `[len(rows), …]`."""
        ...

    def subset(self, rows: np.ndarray) -> "LazyInputs":
        """A view of these rows."""
        ...


Inputs = Sequence[str] | np.ndarray | LazyInputs


@dataclass(frozen=True)
class Split:
    """One part of a data set."""

    inputs: Inputs
    labels: np.ndarray  # int32 [n]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Split":
        """The split at these row numbers, in their order."""
        if isinstance(self.inputs, np.ndarray):
            inputs: Inputs = self.inputs[rows]
        elif isinstance(self.inputs, LazyInputs):
            inputs = self.inputs.subset(rows)
        else:
            inputs = [self.inputs[row] for row in rows]
        return Split(inputs, self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """Labelled examples in three disjoint parts. `validation` may be empty; `test` is only ever evaluated on."""

    name: str
    kind: Literal["text", "image", "features"]
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class DataConfig:
    """Which data to read."""

    source: str  # newsgroups, reuters_r8, reuters_r52, fashion_mnist, files, features or tfds
    name: str | None = None  # tfds: the data set's name in the TFDS catalogue, "ag_news_subset" or "name/config"
    train: str | None = None  # files, features: path
    test: str | None = None  # files, features: path
    validation: str | None = None  # files, features: path; cut from train if absent
    train_labels: str | None = None  # features in .npy: path of the labels
    test_labels: str | None = None
    validation_labels: str | None = None
    validation_fraction: float = 0.1  # of train, class by class; not used where the source has a validation part
    image_size: int | None = None  # tfds images: side in pixels; stored size if absent
    cache_dir: str | None = None  # default: $MRL_JAX_CACHE or ~/.cache/mrl_jax
    limit: int | None = None  # at most so many examples a split, spread over the classes (for smoke runs)


def assemble(dataset: Dataset, config: DataConfig) -> Dataset:
    """Apply `validation_fraction` (only if `dataset.validation` is empty) and `limit`."""
    if not 0 <= config.validation_fraction < 1:
        raise UserError(f"data.validation_fraction={config.validation_fraction} must be at least 0 and less than 1")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"data.limit={config.limit} must be at least 1")
    if not len(dataset.validation):
        kept, held_out = cut(dataset.train.labels, config.validation_fraction)
        train = dataset.train.take(kept) if len(held_out) else dataset.train
        dataset = replace(dataset, train=train, validation=dataset.train.take(held_out))
    if config.limit is not None:
        parts = {part: getattr(dataset, part) for part in ("train", "validation", "test")}
        dataset = replace(dataset, **{k: v.take(first(v.labels, config.limit)) for k, v in parts.items()})
    return dataset


def cut(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to keep and rows to hold out, both sorted: of each class the rounded fraction, never its last example.

    Depends on the labels and the fraction only, so every run of a study has the same validation set.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out[rows[: min(round(fraction * len(rows)), len(rows) - 1)]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def first(labels: np.ndarray, limit: int) -> np.ndarray:
    """The first rows of each class in proportion to its size, sorted, `limit` in all: every class has one before any
    has two shares. Row r of a class of n is taken at quantile r/n."""
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        quantile[rows] = np.arange(len(rows)) / len(rows)
    return np.sort(np.argsort(quantile, kind="stable")[:limit])


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels, sorted: as numbers if all are whole numbers (2 before 10), else as text."""
    found = set(labels)
    if all(label.isascii() and label.isdigit() for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))
