"""Data sources: `load("newsgroups")` or `load(DataConfig(source="files", train="a.jsonl", test="b.jsonl"))`.

A new source is a module in `sources/` with a function `read(config)`, and an entry in `SOURCES`. Importing this package
is cheap: a source is imported when it is read, and so are TFDS (0.4 s) and what else only some of them need.
"""

import dataclasses
from dataclasses import dataclass
from importlib import import_module
from typing import get_args

from mrl_jax.data.base import (
    DataConfig,
    Dataset,
    LazyInputs,
    PairDataset,
    Pairs,
    Ranking,
    SourceConfig,
    Split,
    StreamedTexts,
    Task,
    check_numbers,
)
from mrl_jax.data.hold_out import hold_out
from mrl_jax.data.mixture import MixedDataset
from mrl_jax.data.unlabelled import TextDataset
from mrl_jax.system.errors import UserError, one_of

__all__ = [
    "SOURCES",
    "DataConfig",
    "Dataset",
    "LazyInputs",
    "MixedDataset",
    "PairDataset",
    "Pairs",
    "Ranking",
    "SourceConfig",
    "SourceType",
    "Split",
    "StreamedTexts",
    "TextDataset",
    "load",
]


@dataclass(frozen=True)
class SourceType:
    """One source of data."""

    readers: dict[Task, str]  # per task, the module of `sources/` whose `read(config)` reads it; the first is default
    keys: tuple[str, ...] = ()  # of `DataConfig`, those that it uses beside `GENERAL_KEYS`


FILES = ("train", "test", "validation")
LABELS = ("train_labels", "test_labels", "validation_labels")

SOURCES: dict[str, SourceType] = {
    "newsgroups": SourceType({"classes": "newsgroups"}),
    "reuters_r8": SourceType({"classes": "reuters"}),
    "reuters_r52": SourceType({"classes": "reuters"}),
    "wordnet": SourceType({"classes": "wordnet", "pairs": "wordnet_pairs"}, keys=("task",)),
    "fashion_mnist": SourceType({"classes": "fashion_mnist"}),
    "cifar": SourceType({"classes": "cifar"}, keys=("path",)),
    "files": SourceType({"classes": "files"}, keys=(*FILES, "streaming")),
    "features": SourceType(
        {"classes": "features", "pairs": "feature_pairs"}, keys=("task", *FILES, *LABELS, "packed_bits")
    ),
    "images": SourceType({"classes": "images"}, keys=(*FILES, "image_size", "streaming", "workers")),
    "image_text": SourceType({"pairs": "image_text"}, keys=(*FILES, "image_size", "streaming")),
    "tfds": SourceType({"classes": "tfds"}, keys=("name", "image_size", "streaming", "workers")),
    "pairs": SourceType({"pairs": "pairs"}, keys=(*FILES, "streaming")),
    "texts": SourceType({"texts": "texts"}, keys=(*FILES, "streaming")),
    "beir": SourceType({"pairs": "beir"}, keys=("path", "train")),
    "stsb": SourceType({"pairs": "stsb"}),
    "mixture": SourceType({"mixture": "mixture"}, keys=("sources", "mixing", "mixing_temperature")),
}
GENERAL_KEYS = ("source", "prompts", "validation_fraction", "group_repeats", "cache_dir", "limit", "hold_out")


def load(config: DataConfig | str) -> Dataset | PairDataset | MixedDataset:
    """Read a data set into memory (very large ones: lazily).

    The validation split is the source's own where it has one, else cut from train, class by class or anchor by anchor,
    the same rows in every run; the test split is never touched.

    Args:
        config: what to read; a plain name stands for `DataConfig(source=name)`.

    Returns:
        Labelled examples, or pairs where that is the source's task or `config.task`; of a mixture, all its sources.

    Raises:
        UserError: for anything the user can put right: unknown source, missing or broken file, no network.
    """
    config = DataConfig(source=config) if isinstance(config, str) else config
    one_of("data", config.source, SOURCES)
    one_of("data.task", config.task or "classes", get_args(Task))
    check_keys(config)
    check_numbers(config)
    return hold_out(read(config), config).assemble(config)


def check_keys(config: DataConfig) -> None:
    """Raise `UserError` for a key that only other sources use."""
    for key in (field.name for field in dataclasses.fields(DataConfig)):
        if key in GENERAL_KEYS or key in SOURCES[config.source].keys or getattr(config, key) is None:
            continue
        *others, last = (name for name, source in SOURCES.items() if key in source.keys)
        owners = f"{', '.join(others)} and {last}" if others else last
        raise UserError(f"data.{key} is not used by data={config.source}; it belongs to {owners}")


def read(config: DataConfig) -> Dataset | PairDataset | MixedDataset:
    """The data set as its source delivers it."""
    readers = SOURCES[config.source].readers
    task = next(iter(readers)) if config.task is None else config.task
    one_of("data.task", task, readers)
    dataset: Dataset | PairDataset | MixedDataset = import_module(f"mrl_jax.data.sources.{readers[task]}").read(config)
    return dataset
