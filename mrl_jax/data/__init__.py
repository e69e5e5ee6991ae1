"""Data sources: `load("newsgroups")` or `load(DataConfig(source="files", train="a.jsonl", test="b.jsonl"))`.

Importing this package is cheap: TFDS (0.4 s) is imported by the sources that need it, TensorFlow by none.
"""

from mrl_jax.data import pair_ops
from mrl_jax.data.base import (
    DataConfig,
    Dataset,
    LazyInputs,
    PairDataset,
    Pairs,
    Ranking,
    Split,
    StreamedTexts,
    assemble,
    check_numbers,
)
from mrl_jax.errors import UserError, one_of

__all__ = [
    "SOURCES",
    "DataConfig",
    "Dataset",
    "LazyInputs",
    "PairDataset",
    "Pairs",
    "Ranking",
    "Split",
    "StreamedTexts",
    "load",
]

SOURCES = (
    *("newsgroups", "reuters_r8", "reuters_r52", "wordnet", "fashion_mnist", "files", "features", "tfds"),
    *("pairs", "beir", "stsb"),
)
KEYS = {  # of `DataConfig`, those that only some sources use
    "task": ("wordnet", "features"),
    "path": ("beir",),
    "name": ("tfds",),
    "image_size": ("tfds",),
    "streaming": ("files", "tfds", "pairs"),
    "train": ("files", "features", "pairs", "beir"),
    "test": ("files", "features", "pairs"),
    "validation": ("files", "features", "pairs"),
    "train_labels": ("features",),
    "test_labels": ("features",),
    "validation_labels": ("features",),
}
TASKS = ("classes", "pairs")


def load(config: DataConfig | str) -> Dataset | PairDataset:
    """Read a data set into memory (very large ones: lazily).

    A plain name stands for `DataConfig(source=name)`. Pairs come from `pairs`, `beir` and `stsb`, and from `wordnet`
    and `features` with `task="pairs"`. The validation split is the source's own where it has one, else cut from train,
    class by class or anchor by anchor, the same rows in every run; the test split is never touched.
    Raises `UserError` for anything the user can put right: unknown source, missing or broken file, no network.
    """
    config = DataConfig(source=config) if isinstance(config, str) else config
    one_of("data", config.source, SOURCES)
    one_of("data.task", config.task or "classes", TASKS)
    for key, sources in KEYS.items():
        if getattr(config, key) is not None and config.source not in sources:
            *others, last = sources
            belongs = f"{', '.join(others)} and {last}" if others else last
            raise UserError(f"data.{key} is not used by data={config.source}; it belongs to {belongs}")
    check_numbers(config)
    dataset = read(config)
    if isinstance(dataset, PairDataset):
        return pair_ops.assemble(dataset, config)
    return assemble(dataset, config)


def read(config: DataConfig) -> Dataset | PairDataset:
    """The data set as its source delivers it."""
    match config.source, config.task:
        case "files", _:
            from mrl_jax.data.sources import files

            return files.read(config)
        case "features", "pairs":
            from mrl_jax.data.sources import feature_pairs

            return feature_pairs.read(config)
        case "features", _:
            from mrl_jax.data.sources import features

            return features.read(config)
        case "tfds", _:
            from mrl_jax.data.sources import tfds as catalogue

            return catalogue.read(config)
        case "fashion_mnist", _:
            from mrl_jax.data.sources import fashion_mnist

            return fashion_mnist.read(config)
        case "wordnet", "pairs":
            from mrl_jax.data.sources import wordnet_pairs

            return wordnet_pairs.read(config)
        case "wordnet", _:
            from mrl_jax.data.sources import wordnet

            return wordnet.read(config)
        case "newsgroups", _:
            from mrl_jax.data.sources import newsgroups

            return newsgroups.read(config)
        case "pairs", _:
            from mrl_jax.data.sources import pairs

            return pairs.read(config)
        case "beir", _:
            from mrl_jax.data.sources import beir

            return beir.read(config)
        case "stsb", _:
            from mrl_jax.data.sources import stsb

            return stsb.read(config)
        case _:
            from mrl_jax.data.sources import reuters

            return reuters.read(config)
