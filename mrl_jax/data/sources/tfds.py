"""Any labelled text or image data set of the TFDS catalogue: `data=tfds data.name=ag_news_subset`.

Everything works without TensorFlow as long as the data set's own preparation does. Images are kept encoded in the
ArrayRecord files and decoded here with Pillow. A set that fits into `MEMORY` is decoded once; a larger one
(imagenet2012: 1.28 M images, 145 GB encoded, 193 GB as 224x224 arrays) stays on disk and is decoded batch by batch.
Texts are read into memory, and streamed (see `mrl_jax.streaming`) from `STREAMED_FROM` bytes on.
"""

import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mrl_jax.data.base import STREAMED_FROM, DataConfig, Dataset, Split, StreamedTexts
from mrl_jax.data.readers import tfds as builders
from mrl_jax.data.sources.features import DAMAGED
from mrl_jax.errors import UserError, nearest
from mrl_jax.files import cache_folder

TEXT_KEYS = ("text", "description", "sentence")
IMAGE_KEY = "image"
LABEL_KEY = "label"
PIXELS = 1 << 27  # of a picture, as stored or scaled up to cover the target: more is damage, or made to fill the memory
MEMORY = 2 << 30  # bytes of decoded images of one split that are still kept in memory
LABEL_CHUNK = 4096  # records read at once when only their labels are wanted

log = logging.getLogger(__name__)


def read(config: DataConfig) -> Dataset:
    """Read the data set `data.name`; images get `data.image_size`, which is needed if their stored sizes differ.

    The test split is "test" if it has labels, else "validation" (logged). Raises `UserError` for an unknown name, a
    source that does not answer, or a data set without text or image and class label.
    """
    if config.name is None:
        raise UserError("data=tfds needs data.name, the name of a data set in the TFDS catalogue")
    builder = prepared(config.name, config.cache_dir)
    key, kind = input_feature(builder, config.name)
    if kind == "text" and config.image_size is not None:
        raise UserError(f"data.image_size={config.image_size} has no meaning for data.name={config.name}, a text set")
    test = test_split(builder, config.name)
    has_validation = test == "test" and labelled(builder, "validation")

    def part(split: str) -> Split:
        if kind == "text" and is_streamed(builder, config):
            return streamed_texts(builder, split, key, config)
        if kind == "text":
            texts, labels = builders.Records(builder, split).all(key)
            return Split(builders.decoded(texts, config.name or ""), labels)
        return images(builder, split, key, config)

    train = part("train")
    return Dataset(
        name=config.name.replace("/", "_"),
        kind="text" if kind == "text" else "image",
        classes=tuple(builder.info.features[LABEL_KEY].names),
        train=train,
        validation=part("validation") if has_validation else train.take(np.arange(0)),
        test=part(test),
    )


def prepared(name: str, cache_dir: str | None) -> Any:
    """The builder of a catalogue name with its files on disk; TFDS' own data folder unless a cache folder is given."""
    folder = None if cache_dir is None else cache_folder(cache_dir) / "tfds"
    try:
        builder = tfds.builder(name, file_format="array_record", data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError as error:
        hint = nearest(name.split("/")[0].split(":")[0], tfds.list_builders(with_community_datasets=False))
        raise UserError(f"data.name={name} is not in the TFDS catalogue{hint}") from error
    except Exception as error:  # a builder is foreign code: an unknown config or version, a file format that differs
        raise UserError(f"data.name={name} cannot be opened: {first_line(error)}") from error
    if not builder.data_path.exists():
        log.info("preparing %s in %s", builder.info.full_name, builder.data_path)
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:  # likewise: no network, a file to be fetched by hand, TensorFlow needed, disk full
            raise UserError(f"data.name={name} cannot be prepared: {first_line(error)}") from error
    return builder


def first_line(error: Exception) -> str:
    """What a foreign error says, in one line; how to go on if it asks for TensorFlow."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "tensorflow" in line.lower() and isinstance(error, ImportError):
        line += " (its preparation needs TensorFlow; prepare it once where that is installed, as array_record)"
    return f"{type(error).__name__}: {line}"


def input_feature(builder: Any, name: str) -> tuple[str, str]:
    """The key of the input feature, and "text" or "image": TFDS' supervised key first, then the usual names."""
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
            if labelled(builder, split):
                if split == "validation":
                    log.warning("%s has no labelled test split: its validation split is used as test", name)
                return split
    found = ", ".join(builder.info.splits)
    raise UserError(f"data.name={name} needs the split train and a labelled test or validation; its splits are {found}")


def labelled(builder: Any, split: str) -> bool:
    """Whether the split exists with labels (TFDS marks a withheld label with -1)."""
    if split not in builder.info.splits or builder.info.splits[split].num_examples == 0:
        return False
    return int(read_labels(builders.Records(builder, split), range(1))[0]) >= 0


def read_labels(records: builders.Records, rows: range) -> np.ndarray:
    """The labels of these rows, int32."""
    chunks = [rows[start : start + LABEL_CHUNK] for start in range(0, len(rows), LABEL_CHUNK)]
    return np.concatenate([np.zeros(0, np.int32), *(records.labels(chunk) for chunk in chunks)])


def is_streamed(builder: Any, config: DataConfig) -> bool:
    """Whether texts stay on disk: as `data.streaming` says, else by the size of the train split."""
    if config.streaming is not None:
        return config.streaming
    return int(builder.info.splits["train"].num_bytes) >= STREAMED_FROM


def streamed_texts(builder: Any, split: str, key: str, config: DataConfig) -> Split:
    """A text split of which only the labels are held."""
    records = builders.Records(builder, split)

    def texts() -> Iterator[str]:
        for start in range(0, len(records), LABEL_CHUNK):
            for text in records.inputs(range(start, min(start + LABEL_CHUNK, len(records))), key):
                yield text.decode("utf-8")

    info = builder.info.splits[split]
    digest = f"{builder.info.full_name} {split} {info.shard_lengths} {info.num_bytes} {builder.data_path}"
    return Split(StreamedTexts(texts, len(records), digest), cached_labels(records, builder, split, config))


def images(builder: Any, split: str, key: str, config: DataConfig) -> Split:
    """An image split: decoded if it fits into `MEMORY`, else lazy."""
    records = builders.Records(builder, split)
    shape = builder.info.features[key].shape
    geometry = target_geometry(shape, config)
    every = np.arange(len(records))
    lazy = EncodedImages(records, key, geometry, every)
    fits = len(records) * geometry.height * geometry.width * geometry.channels <= MEMORY
    if not (config.streaming if config.streaming is not None else not fits):
        return Split(lazy[every], read_labels(records, range(len(records))))
    return Split(lazy, cached_labels(records, builder, split, config))


def cached_labels(records: builders.Records, builder: Any, split: str, config: DataConfig) -> np.ndarray:
    """All labels of a large image split, int32 [n]. A record holds image and label together, so the files are read
    whole for them, once; then they lie in CACHE/labels."""
    name = f"{builder.info.full_name.replace('/', '-')}-{split}-{len(records)}.npz"
    path = cache_folder(config.cache_dir) / "labels" / name
    with suppress(OSError, KeyError, BadZipFile, *DAMAGED), np.load(path, allow_pickle=False) as kept:
        labels: np.ndarray = kept["labels"]  # checked by the checksum of the archive
        if labels.shape == (len(records),) and labels.dtype == np.int32:
            return labels
    labels = read_labels(records, range(len(records)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{name}")
    np.savez(partial, labels=labels)
    partial.replace(path)
    return labels


class Geometry(NamedTuple):
    """Size of the decoded images."""

    height: int
    width: int
    channels: int


def target_geometry(shape: tuple[int | None, ...], config: DataConfig) -> Geometry:
    """`image_size` squared, or the stored size if that is the same for all images."""
    height, width, channels = shape
    if config.image_size is not None:
        if config.image_size < 1:
            raise UserError(f"data.image_size={config.image_size} must be at least 1")
        height = width = config.image_size
    if height is None or width is None:
        raise UserError(f"data.name={config.name} has images of different sizes; give data.image_size, e.g. 224")
    return Geometry(height, width, 1 if channels == 1 else 3)


class EncodedImages:
    """Images on disk, decoded when asked for: `images[rows]` is uint8 `[len(rows), height, width, channels]`.

    A batch costs one `__getitems__` and one Pillow decode an image on a pool of threads (Pillow releases the
    interpreter lock while it decodes and resizes).
    """

    def __init__(self, records: builders.Records, key: str, geometry: Geometry, rows: np.ndarray) -> None:
        self.records, self.key, self.geometry, self.rows = records, key, geometry, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        wanted = self.rows[rows]
        out = np.empty((len(wanted), *self.geometry), np.uint8)

        def fill(position: int, encoded: bytes) -> None:
            try:
                out[position] = decode(encoded, self.geometry)
            except UserError as error:
                raise UserError(f"picture {wanted[position]} (from 0) of its split {error}") from None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(wanted), LABEL_CHUNK):  # bounds the encoded bytes held at once
                encoded = self.records.inputs(wanted[start : start + LABEL_CHUNK].tolist(), self.key)
                list(pool.map(fill, range(start, start + len(encoded)), encoded))
        return out

    def subset(self, rows: np.ndarray) -> "EncodedImages":
        """A view of these rows; nothing is read."""
        return EncodedImages(self.records, self.key, self.geometry, self.rows[rows])


def decode(encoded: bytes, geometry: Geometry) -> np.ndarray:
    """Decode a JPEG or PNG: scale so that it just covers the target, then crop the centre. uint8 [h, w, c].

    Raises `UserError` for anything else: some of Pillow's other formats start programs.
    """
    mode = "L" if geometry.channels == 1 else "RGB"
    size = (geometry.width, geometry.height)
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            scale = max(size[0] / image.width, size[1] / image.height, 1)
            if image.width * image.height * scale**2 > PIXELS:
                raise ValueError(f"it has {image.width} × {image.height} pixels")
            image.draft(mode, size)  # a JPEG far larger than the target is decoded at 1/2, 1/4 or 1/8 of its size
            picture: Image.Image = image.convert(mode)
    # Pillow has no error of its own for what is wrong in a file.
    except (OSError, ValueError, SyntaxError, TypeError, struct.error, zlib.error, IndexError, KeyError, MemoryError,
            EOFError, OverflowError, Image.DecompressionBombError) as error:  # fmt: skip
        raise UserError(f"is not a JPEG or PNG that can be decoded: {error}") from error
    if picture.size != size:
        scale = max(size[0] / picture.width, size[1] / picture.height)
        scaled = max(size[0], round(picture.width * scale)), max(size[1], round(picture.height * scale))
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
        picture = picture.crop((left, top, left + size[0], top + size[1]))
    return np.asarray(picture).reshape(geometry)
