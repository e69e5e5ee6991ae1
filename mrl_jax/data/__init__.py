"""Data sources: `load("newsgroups")` or `load(DataConfig(source="files", train="a.jsonl", test="b.jsonl"))`.

Importing this package is cheap: TFDS (0.4 s) is imported by the sources that need it, TensorFlow by none.
"""

from mrl_jax.data.base import DataConfig, Dataset, LazyInputs, Split, assemble
from mrl_jax.errors import UserError, one_of

__all__ = ["SOURCES", "DataConfig", "Dataset", "LazyInputs", "Split", "load"]

SOURCES = ("newsgroups", "reuters_r8", "reuters_r52", "wordnet", "fashion_mnist", "files", "features", "tfds")
KEYS = {  # of `DataConfig`, those that only some sources use
    "name": ("tfds",),
    "image_size": ("tfds",),
    "train": ("files", "features"),
    "test": ("files", "features"),
    "validation": ("files", "features"),
    "train_labels": ("features",),
    "test_labels": ("features",),
    "validation_labels": ("features",),
}


def load(config: DataConfig | str) -> Dataset:
    """Read a data set into memory (very large image sets: lazily).

    A plain name stands for `DataConfig(source=name)`. The validation split is the source's own where it has one, else
    cut from train, class by class, the same rows in every run; the test split is never touched.
    Raises `UserError` for anything the user can put right: unknown source, missing or broken file, no network.
    """
    config = DataConfig(source=config) if isinstance(config, str) else config
    one_of("data", config.source, SOURCES)
    for key, sources in KEYS.items():
        if getattr(config, key) is not None and config.source not in sources:
            raise UserError(f"data.{key} is not used by data={config.source}; it belongs to {' and '.join(sources)}")
    match config.source:
        case "files":
            from mrl_jax.data import files

            dataset = files.read(config)
        case "features":
            from mrl_jax.data import features

            dataset = features.read(config)
        case "tfds":
            from mrl_jax.data import catalogue

            dataset = catalogue.read(config)
        case "fashion_mnist":
            from mrl_jax.data import fashion_mnist

            dataset = fashion_mnist.read(config)
        case "wordnet":
            from mrl_jax.data import wordnet

            dataset = wordnet.read(config)
        case "newsgroups":
            from mrl_jax.data import newsgroups

            dataset = newsgroups.read(config)
        case _:
            from mrl_jax.data import reuters

            dataset = reuters.read(config)
    return assemble(dataset, config)
