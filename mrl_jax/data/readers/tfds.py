"""TFDS builders without TensorFlow: prepare one once as ArrayRecord files, then read its records.

Needs `file_format="array_record"` and features that decode without TensorFlow (Text, ClassLabel, Tensor).
Reading a split costs one pass of `__getitems__`; afterwards an epoch is a permutation of row numbers in memory.
"""

import contextlib
import fcntl
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from mrl_jax.data.base import Dataset, Split
from mrl_jax.data.readers.arrays import DAMAGED
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import cache_folder, sha256_of

Example = tf_example_pb2.Example
SUMS = "sha256.json"  # {file: SHA-256} in a prepared folder
READ_RECORDS = 4096  # records held in memory at a time when only a part of each is wanted


def prepare(builder_class: type[Any], cache_dir: str | None, **options: Any) -> Any:
    """An instance of one of our builders, with its files in CACHE/prepared.

    The files are hashed on every use, which costs 1 to 2 ms per megabyte, and prepared again if they have changed.
    """
    cache = cache_folder(cache_dir)

    def new() -> Any:
        return builder_class(data_dir=cache / "prepared", file_format="array_record", **options)

    discard_damaged(cache / "prepared" / builder_class.name)  # TFDS reads a folder's metadata before we can look
    builder = new()
    folder = Path(builder.data_path)
    if is_intact(folder):
        return builder
    try:
        with lock(cache / "prepared"):
            if is_intact(folder):  # another process was faster
                return new()
            if folder.exists():
                print(f"{folder} is not what was prepared", file=sys.stderr)
                shutil.rmtree(folder)
            print(f"preparing {builder.info.full_name} in {folder}", file=sys.stderr, flush=True)
            builder = new()
            with quiet():
                builder.download_and_prepare(download_dir=cache)  # builders keep their artefacts in this folder
            sums = {path.name: sha256_of(path) for path in folder.iterdir()}
            (folder / SUMS).write_text(json.dumps(sums))
    except OSError as error:
        raise UserError(f"cannot write the prepared data set to {folder}: {error}") from error
    return new()


def discard_damaged(parent: Path) -> None:
    """Remove prepared folders whose files are not those that were written."""
    for sums in list(parent.rglob(SUMS)):
        if not is_intact(sums.parent):
            print(f"{sums.parent} is not what was prepared", file=sys.stderr)
            shutil.rmtree(sums.parent, ignore_errors=True)


def is_intact(folder: Path) -> bool:
    """Whether every file of a prepared data set is as it was written."""
    try:
        sums = json.loads((folder / SUMS).read_text())
        return bool(sums) and all(sha256_of(folder / name) == expected for name, expected in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Wait until no other process holds this lock; where the file system has no locks, do not wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence TFDS' progress bars, its messages on stdout (a program may read ours) and its logs below warnings."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.WARNING)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


class Records:
    """Random access to the fields of one split's records, without TFDS' per-example decoding.

    A record is a serialised `tf.train.Example`. TFDS' own decoding costs 65 µs per example (18,821 posts: 1.2 s),
    reading and parsing the message alone 12 µs (0.2 s). That suffices here: texts, labels and encoded images are plain
    top-level fields.
    """

    def __init__(self, builder: Any, split: str) -> None:
        raw = tfds.core.decode.DeserializeMethod.RAW_BYTES
        self.folder = builder.data_path
        self.source = builder.as_data_source(split, deserialize_method=raw)

    def __len__(self) -> int:
        return len(self.source)

    def fields(self, rows: Sequence[int]) -> list[Any]:
        """The messages' field maps of these rows."""
        with self._readable():
            return [Example.FromString(record).features.feature for record in self.source.__getitems__(rows)]

    def inputs(self, rows: Sequence[int], key: str) -> list[bytes]:
        """The bytes field `key` of these rows."""
        fields = self.fields(rows)
        with self._readable():
            return [field[key].bytes_list.value[0] for field in fields]

    def labels(self, rows: range) -> np.ndarray:
        """The labels of these rows, int32 [n]."""
        labels = [np.zeros(0, np.int32)]
        for start in range(0, len(rows), READ_RECORDS):
            fields = self.fields(rows[start : start + READ_RECORDS])
            with self._readable():
                labels.append(np.array([field["label"].int64_list.value[0] for field in fields], np.int32))
        return np.concatenate(labels)

    def all(self, key: str) -> tuple[list[bytes], np.ndarray]:
        """The bytes field `key` and the labels, int32 [n], of every row in stored order."""
        fields = self.fields(range(len(self)))
        with self._readable():
            labels = np.array([field["label"].int64_list.value[0] for field in fields], np.int32)
            return [field[key].bytes_list.value[0] for field in fields], labels

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what the libraries raise for a damaged record into a `UserError` that says what to do."""
        try:
            yield
        except (DecodeError, RuntimeError, ValueError, OverflowError, IndexError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.folder} is damaged ({reason}); delete it, and it is prepared anew") from error


def cached_labels(records: Records, builder: Any, split: str, cache_dir: str | None) -> np.ndarray:
    """All labels of a large split, int32 [n]. A record holds input and label together, so all records are read for
    them, once; then they are stored in CACHE/labels."""
    name = f"{builder.info.full_name.replace('/', '-')}-{split}-{len(records)}.npz"
    path = cache_folder(cache_dir) / "labels" / name
    with contextlib.suppress(*DAMAGED), np.load(path, allow_pickle=False) as arrays:
        labels: np.ndarray = arrays["labels"]  # the archive has a checksum
        if labels.shape == (len(records),) and labels.dtype == np.int32:
            return labels
    labels = records.labels(range(len(records)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{name}")
    np.savez(partial, labels=labels)
    partial.replace(path)
    return labels


def decode_texts(texts: Sequence[bytes], name: str) -> list[str]:
    """Stored texts as str."""
    try:
        return [text.decode("utf-8") for text in texts]
    except UnicodeDecodeError as error:
        raise UserError(f"{name} holds a text that is not valid UTF-8 ({error.reason}, byte {error.start})") from error


def text_dataset(name: str, builder: Any) -> Dataset:
    """The text data set of a prepared builder with the features `text` and `label`; its validation split is empty."""

    def part(split: str) -> Split:
        inputs, labels = Records(builder, split).all("text")
        return Split(decode_texts(inputs, name), labels)

    classes = tuple(builder.info.features["label"].names)
    return Dataset(name, "text", classes, part("train"), Split([], np.zeros(0, np.int32)), part("test"))
