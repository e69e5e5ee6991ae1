"""Which data to read: the section `data` of a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mrl_jax.system.errors import UserError, limited

Task = Literal["classes", "pairs", "texts", "mixture"]


@dataclass(frozen=True)
class DataConfig:
    """Which data to read."""

    source: str  # name of the data source, one of `mrl_jax.data.SOURCES`
    task: Task | None = None  # wordnet, features: whether to learn classes or pairs; null: classes
    path: str | None = None  # beir, cifar: folder, with corpus.jsonl, queries.jsonl and qrels/, or the .bin files
    name: str | None = None  # tfds: name in the TFDS catalogue, such as ag_news_subset or name/config
    train: str | None = None  # files, features, pairs, image_text: training file; images: folder; beir: your own pairs
    test: str | None = None  # files, features, pairs, image_text: test file; images: folder
    validation: str | None = None  # as data.test; null: cut from the training data
    train_labels: str | None = None  # features as .npy: file with the labels of data.train
    test_labels: str | None = None  # features as .npy: file with the labels of data.test
    validation_labels: str | None = None  # features as .npy: file with the labels of data.validation
    packed_bits: bool | None = None  # features: whether each byte packs eight binary coordinates; null: numbers
    validation_fraction: float = 0.1  # share of each class or the anchors held out; 0 if there is a validation part
    group_repeats: bool = False  # keep examples of equal texts (case and punctuation aside) on one side of that cut
    prompts: Mapping[str, str] | None = limited(
        None,
        "names with texts that UTF-8 can encode",
        lambda prompts: all(prompts) and all(_is_unicode(word) for word in [*prompts, *prompts.values()]),
    )  # before texts, by use: {query: "query: ", document: "passage: "} or {default: …}; null: those of the weights
    image_size: int | None = None  # tfds, images, image_text: side in pixels; null: as stored, or as the weights want
    cache_dir: str | None = None  # folder of downloads and prepared data; null: $MRL_JAX_CACHE, or ~/.cache/mrl_jax
    streaming: bool | None = None  # files, tfds, pairs, images, image_text: read from disk; null: only large data
    workers: int | None = limited(
        None, "at least 1, or null", lambda n: n >= 1
    )  # tfds, images: processes that decode what is read from disk; null: the threads of this one
    limit: int | None = None  # maximum number of examples (pairs, queries) per split, for smoke runs
    hold_out: tuple[str | int, ...] | None = None  # classes to leave out; their test examples are of unknown classes
    sources: Mapping[str, "SourceConfig"] | None = None  # mixture: by a name of yours, {name: {source: …, loss: {…}}}
    mixing: Literal["proportional", "uniform", "temperature"] | None = None  # mixture: steps of a source; null: by size
    mixing_temperature: float | None = limited(None, "at least 1", lambda t: t >= 1)  # mixture: T in size^(1/T)


@dataclass(frozen=True)
class SourceConfig(DataConfig):
    """One source of a mixture: the keys of `data` for it alone, and how it is learnt from."""

    loss: Mapping[str, Any] | None = None  # keys of `loss` that differ from the run's: {name: cosent}
    weight: float = limited(1.0, "more than 0", lambda w: w > 0)  # factor of its share of the steps


def _is_unicode(word: str) -> bool:
    return word == word.encode(errors="ignore").decode()


def check_numbers(config: DataConfig) -> None:
    """Raise `UserError` for a `validation_fraction` or `limit` out of range."""
    if not 0 <= config.validation_fraction < 1:
        raise UserError(f"data.validation_fraction={config.validation_fraction} must be at least 0 and less than 1")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"data.limit={config.limit} must be at least 1")
