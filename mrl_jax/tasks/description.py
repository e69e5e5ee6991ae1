"""Raw data as the arrays of a run, and dataset.json: what a model needs to be built again, and proof of what it saw."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax import encoders, tasks
from mrl_jax.config import Config
from mrl_jax.console import say
from mrl_jax.data import Dataset, PairDataset, StreamedTexts
from mrl_jax.encoders import huggingface
from mrl_jax.errors import UserError
from mrl_jax.files import sha256_of
from mrl_jax.runs import read_dataset
from mrl_jax.tasks.base import Splits
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training import disk_examples
from mrl_jax.training.batches import Examples


class _Preprocess:
    """The reader of a run, with a count of the texts that were too long for it. See `base.Preprocess`."""

    def __init__(self, reader: Preprocessor, cache_dir: str | None) -> None:
        self.reader, self.cache_dir = reader, cache_dir
        self.cut = self.texts = 0

    def __call__(self, raw: Any, labels: np.ndarray) -> Examples:
        inputs = self.reader(raw)
        self.cut, self.texts = self.cut + getattr(self.reader, "cut", 0), self.texts + len(raw)
        return Examples(inputs, labels)

    def on_disk(
        self, texts: StreamedTexts, labels: np.ndarray, name: str, columns: np.ndarray | None = None
    ) -> Examples:
        examples = disk_examples.examples(texts, labels, self.reader, self.cache_dir, name, columns)
        self.cut, self.texts = self.cut + examples.cut, self.texts + len(examples)
        return examples


def read_splits(config: Config, dataset: Dataset | PairDataset, reader: Preprocessor) -> Splits:
    """The three splits of a data set as arrays. Says how many texts were longer than the encoder reads."""
    preprocess = _Preprocess(reader, config.data.cache_dir)
    splits = tasks.of(config).splits(config, dataset, preprocess)
    if preprocess.cut:
        longest = getattr(encoders.standalone(config.encoder, reader.vocabulary)[0], "max_length", None)
        say(
            f"{preprocess.cut:,} of {preprocess.texts:,} texts are longer than encoder.max_length={longest} and are cut"
        )
    return splits


def describe(config: Config, dataset: Dataset | PairDataset, reader: Preprocessor, splits: Splits) -> dict[str, Any]:
    """The content of dataset.json."""
    encoder, vocabulary = encoders.standalone(config.encoder, reader.vocabulary)
    weights = getattr(config.encoder, "weights", None)
    file = huggingface.resolve(weights) / "model.safetensors" if weights else None
    started_from = {"weights": sha256_of(file)} if file is not None and file.is_file() else {}
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        **tasks.of(config).describe(dataset, splits),
        "inputs": {name: list(array[:1].shape[1:]) for name, array in _first_rows(splits["train"].inputs).items()},
        "encoder": dataclasses.asdict(encoder),
        "vocabulary": vocabulary,
        "examples": {name: len(split) for name, split in splits.items()},
        "fingerprint": {name: fingerprint(split) for name, split in splits.items()},
        **started_from,
    }


def to_json(description: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


def refuse_other_data(directory: Path, description: dict[str, Any]) -> None:
    """Raise `UserError` where a run that is resumed was begun with other data."""
    if (directory / "dataset.json").exists():
        if changed := changed_keys(read_dataset(directory), description):
            what = "pretrained weights are" if changed == ["weights"] else "data is"
            raise UserError(f"resume=true: the {what} no longer that of {directory}; restore it, or start a new run")
    elif (directory / "checkpoints").exists():
        raise UserError(f"resume=true: {directory} has checkpoints but no dataset.json to compare the data with")


def changed_keys(then: Mapping[str, Any], description: dict[str, Any]) -> list[str]:
    """The keys of an earlier dataset.json that are described otherwise now."""
    now = json.loads(to_json(description))
    return [key for key in then if then[key] != now.get(key)]


def _first_rows(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array[np.arange(1)]) for name, array in arrays.items()}


def fingerprint(split: Any) -> str:
    """SHA-256 over all arrays of a split; of inputs that are read lazily only the first is looked at."""
    if (known := split.fingerprint) is not None:  # of the same arrays, made when they were written to disk
        return str(known)
    first, arrays = split.arrays()
    lazy = {name: array for name, array in arrays.items() if not isinstance(array, np.ndarray)}
    return disk_examples.digest_of(first, arrays | _first_rows(lazy)).hexdigest()
