"""A user's own vectors, for instance image features extracted elsewhere, with labels.

Either `.npz` files with the arrays `features` [n, d] and `labels` [n], or `.npy` files with the vectors and further
`.npy` files with the labels (`data.train_labels`, `data.test_labels`). Vectors become float32; labels may be whole
numbers or strings. With `data.packed_bits` each byte is eight binary coordinates, as sentence-transformers stores
`ubinary` and `binary` embeddings.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax.data.base import Dataset, Split
from mrl_jax.data.classes import class_names, class_numbers
from mrl_jax.data.config import DataConfig
from mrl_jax.data.readers.arrays import check_features, check_labels, hint_packed, load_npy, load_npz
from mrl_jax.data.readers.records import require_file
from mrl_jax.system.errors import UserError


class Part(NamedTuple):
    """A file, or a file of vectors and one of labels, checked."""

    path: Path
    features: np.ndarray  # float32 [n, d]
    labels: list[str]  # [n]


def read(config: DataConfig) -> Dataset:
    """Read train, test and, if given, validation; else the validation split is empty.

    Raises `UserError` naming the file and what is wrong with its arrays.
    """
    train = load_part(config, "train", config.train, config.train_labels)
    test = load_part(config, "test", config.test, config.test_labels)
    if config.validation:
        validation = load_part(config, "validation", config.validation, config.validation_labels)
    else:
        validation = Part(train.path, train.features[:0], [])
    classes = class_names(train.labels)

    def split(part: Part) -> Split:
        if part.features.shape[1] != train.features.shape[1]:
            raise UserError(
                f"{part.path} has vectors of width {part.features.shape[1]}, {train.path} of {train.features.shape[1]}"
            )

        def describe(row: int) -> str:
            return f"{part.path}, row {row}: the label {part.labels[row]}"

        return Split(part.features, class_numbers(part.labels, classes, train.path, describe))

    return Dataset(train.path.stem, "features", classes, split(train), split(validation), split(test))


def load_part(config: DataConfig, part: str, name: str | None, labels_name: str | None) -> Part:
    """Read and check the vectors and labels of one part."""
    key, labels_key = f"data.{part}", f"data.{part}_labels"
    if name is None:
        raise UserError(f"data=features needs {key}, a .npz file with features and labels, or a .npy file")
    path = require_file(key, name, (".npz", ".npy"))
    if path.suffix.lower() == ".npz":
        if labels_name is not None:
            raise UserError(f"{labels_key}={labels_name} goes with a .npy file; {key}={name} holds its own labels")
        arrays = load_npz(path, ("features", "labels"))
        features, labels = arrays["features"], arrays["labels"]
    else:
        if labels_name is None:
            raise UserError(f"{key}={name} needs {labels_key}, a .npy file with its labels")
        features = load_npy(path)
        labels = load_npy(require_file(labels_key, labels_name, (".npy",)))
    if part == "train":
        hint_packed(path, features, config.packed_bits)
    features = check_features(path, features, packed_bits=config.packed_bits)
    return Part(path, features, check_labels(Path(labels_name or name), labels, len(features)))
