"""Any labelled text or image data set of the TFDS catalogue: `data=tfds data.name=ag_news_subset`.

Everything works without TensorFlow as long as the data set's own preparation does. Images stay encoded in the
ArrayRecord files and are decoded with Pillow. A split of up to `MAX_DECODED_BYTES` is decoded once; a larger one
(imagenet2012: 1.28 M images, 145 GB encoded, 193 GB as 224x224 arrays) stays on disk and is decoded batch by batch.
Texts are read into memory; from `STREAMING_MIN_BYTES` on they stay on disk, too.
"""

import logging
from collections.abc import Iterator
from typing import Any, Literal, assert_never

import numpy as np
import tensorflow_datasets as tfds

from mrl_jax.data.base import Dataset, Split
from mrl_jax.data.config import DataConfig
from mrl_jax.data.inputs import STREAMING_MIN_BYTES, StreamedTexts
from mrl_jax.data.readers import tfds as builders
from mrl_jax.data.readers.decoders import Decoders, of_workers
from mrl_jax.data.readers.images import MAX_DECODED_BYTES, EncodedImages, target_geometry
from mrl_jax.system.errors import UserError, nearest
from mrl_jax.system.files import cache_folder

TEXT_KEYS = ("text", "description", "sentence")
IMAGE_KEY = "image"
LABEL_KEY = "label"

log = logging.getLogger(__name__)


def read(config: DataConfig) -> Dataset:
    """Read the data set `data.name`; images are scaled to `data.image_size`, which is needed if their sizes differ.

    The test split is "test" if it has labels, else "validation" (logged). Raises `UserError` for an unknown name, a
    server that does not answer, or a data set without text or image and class label.
    """
    if config.name is None:
        raise UserError("data=tfds needs data.name, the name of a data set in the TFDS catalogue")
    builder = prepare(config.name, config.cache_dir)
    key, kind = input_feature(builder, config.name)
    if kind == "text" and config.image_size is not None:
        raise UserError(f"data.image_size={config.image_size} has no meaning for data.name={config.name}, a text set")
    test = test_split(builder, config.name)
    has_validation = test == "test" and has_labels(builder, "validation")
    decoders = of_workers(config.workers)

    def part(split: str) -> Split:
        match kind:
            case "text":
                return text_split(builder, split, key, config)
            case "image":
                return image_split(builder, split, key, config, decoders)
            case _:
                assert_never(kind)

    train = part("train")
    return Dataset(
        name=config.name.replace("/", "_"),
        kind=kind,
        classes=tuple(builder.info.features[LABEL_KEY].names),
        train=train,
        validation=part("validation") if has_validation else train.take(np.arange(0)),
        test=part(test),
    )


def prepare(name: str, cache_dir: str | None) -> Any:
    """The builder of a catalogue name with its files on disk; TFDS' own data folder unless a cache folder is given."""
    folder = None if cache_dir is None else cache_folder(cache_dir) / "tfds"
    try:
        builder = tfds.builder(name, file_format="array_record", data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError as error:
        hint = nearest(name.split("/")[0].split(":")[0], tfds.list_builders(with_community_datasets=False))
        raise UserError(f"data.name={name} is not in the TFDS catalogue{hint}") from error
    except Exception as error:  # a builder is third-party code: unknown config or version, another file format
        raise UserError(f"data.name={name} cannot be opened: {first_line(error)}") from error
    if not builder.data_path.exists():
        log.info("preparing %s in %s", builder.info.full_name, builder.data_path)
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:  # likewise: no network, a file to be fetched by hand, TensorFlow needed, disk full
            raise UserError(f"data.name={name} cannot be prepared: {first_line(error)}") from error
    return builder


def first_line(error: Exception) -> str:
    """What a third-party error says, in one line; how to go on if it asks for TensorFlow."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "tensorflow" in line.lower() and isinstance(error, ImportError):
        line += " (its preparation needs TensorFlow; prepare it once where that is installed, as array_record)"
    return f"{type(error).__name__}: {line}"


def input_feature(builder: Any, name: str) -> tuple[str, Literal["text", "image"]]:
    """The key of the input feature, and "text" or "image": TFDS' supervised key, else one of the usual names."""
    features = dict(builder.info.features.items())
    if not isinstance(features.get(LABEL_KEY), tfds.features.ClassLabel):
        raise UserError(f"data.name={name} has no class feature {LABEL_KEY}; its features are {', '.join(features)}")
    supervised = builder.info.supervised_keys or ("",)
    for key in (supervised[0], *TEXT_KEYS, IMAGE_KEY):
        if isinstance(features.get(key), tfds.features.Text):
            return key, "text"
        if isinstance(features.get(key), tfds.features.Image):
            return key, "image"
    raise UserError(
        f"data.name={name} has none of the text features {', '.join(TEXT_KEYS)} and no image feature {IMAGE_KEY}; "
        f"its features are {', '.join(features)}"
    )


def test_split(builder: Any, name: str) -> str:
    """The split to evaluate on."""
    if "train" in builder.info.splits:
        for split in ("test", "validation"):
            if has_labels(builder, split):
                if split == "validation":
                    log.warning("%s has no labelled test split: its validation split is used as test", name)
                return split
    splits = ", ".join(builder.info.splits)
    needed = "the split train and a labelled test or validation"
    raise UserError(f"data.name={name} needs {needed}; its splits are {splits}")


def has_labels(builder: Any, split: str) -> bool:
    """Whether the split exists with labels (TFDS marks a withheld label with -1)."""
    if split not in builder.info.splits or builder.info.splits[split].num_examples == 0:
        return False
    return int(builders.Records(builder, split).labels(range(1))[0]) >= 0


def is_streamed(builder: Any, config: DataConfig) -> bool:
    """Whether texts stay on disk: as `data.streaming` says, else by the size of the train split."""
    if config.streaming is not None:
        return config.streaming
    return int(builder.info.splits["train"].num_bytes) >= STREAMING_MIN_BYTES


def text_split(builder: Any, split: str, key: str, config: DataConfig) -> Split:
    """A text split in memory, or one of which only the labels are."""
    records = builders.Records(builder, split)
    if not is_streamed(builder, config):
        inputs, labels = records.all(key)
        return Split(builders.decode_texts(inputs, config.name or ""), labels)

    def texts() -> Iterator[str]:
        for start in range(0, len(records), builders.READ_RECORDS):
            for text in records.inputs(range(start, min(start + builders.READ_RECORDS, len(records))), key):
                yield text.decode("utf-8")

    info = builder.info.splits[split]
    digest = f"{builder.info.full_name} {split} {info.shard_lengths} {info.num_bytes} {builder.data_path}"
    labels = builders.cached_labels(records, builder, split, config.cache_dir)
    return Split(StreamedTexts(texts, len(records), digest), labels)


def image_split(builder: Any, split: str, key: str, config: DataConfig, decoders: Decoders | None = None) -> Split:
    """An image split: decoded as `data.streaming` says, else if it has at most `MAX_DECODED_BYTES`; otherwise lazy."""
    records = builders.Records(builder, split)
    geometry = target_geometry(builder.info.features[key].shape, config.image_size, config.name)
    rows = np.arange(len(records))
    images = EncodedImages(records, key, geometry, rows, decoders)
    decoded_bytes = len(records) * geometry.height * geometry.width * geometry.channels
    lazy = decoded_bytes > MAX_DECODED_BYTES if config.streaming is None else config.streaming
    if lazy:
        return Split(images, builders.cached_labels(records, builder, split, config.cache_dir))
    return Split(images[rows], records.labels(range(len(records))))
