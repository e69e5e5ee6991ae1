"""Fashion-MNIST: 70,000 grey 28x28 images of clothing in 10 classes, 60,000 to train on and 10,000 to test on.

The four IDX files come from the Debian package `dataset-fashion-mnist` where `apt-get` has it, else from the authors'
server; each must have the SHA-256 below, so both give the same bytes. Images are stored as plain uint8 arrays, because
TFDS' `features.Image` encodes with TensorFlow.

IDX format: two zero bytes, type (8 = uint8), number of axes, a big-endian int32 per axis, then the values row by row.
"""

import gzip
import hashlib
import struct
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from mrl_jax.data.base import Dataset, Split
from mrl_jax.data.config import DataConfig
from mrl_jax.data.readers import tfds as builders
from mrl_jax.data.readers.artefacts import (
    Artefact,
    SourceUnavailableError,
    check_hash,
    fetch,
    partial_folder,
    wrong_hash_error,
)
from mrl_jax.system.errors import UserError

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
FILES = {  # SHA-256
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
FOLDER = "usr/share/datasets/fashion-mnist"
DEBIAN = Artefact(
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    members=tuple(f"{FOLDER}/{name}" for name in FILES),
    kind="deb",
)
ORIGINAL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"  # named by github.com/zalandoresearch
MAX_FILE_BYTES = 1 << 27  # of a file, compressed or not; the largest has 47 MB
SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}


# Not registered by name, because TFDS' own catalogue has a data set of this name. (mypy sees TFDS as untyped.)
class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
    """Images of clothing; the task is to name the kind."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The authors' IDX files."}

    def _info(self) -> tfds.core.DatasetInfo:
        pixels = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Zalando's article pictures, 28x28 grey levels, in ten classes of equal size.",
            features=tfds.features.FeaturesDict({"image": pixels, "label": tfds.features.ClassLabel(names=CLASSES)}),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            license="MIT, copyright 2017 Zalando SE",
            citation="""@article{xiao2017fashion, author={Han Xiao and Kashif Rasul and Roland Vollgraf},
title={Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms},
journal={arXiv:1708.07747}, year={2017}}""",
            disable_shuffling=True,  # keep the file's order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = source_folder(Path(dl_manager.download_dir))
        return {split: self._generate_examples(folder, split) for split in SPLITS}

    def _generate_examples(self, folder: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        stem, expected = SPLITS[split]
        images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        if images.shape != (expected, 28, 28) or labels.shape != (expected,):
            raise UserError(f"{stem} has {images.shape} images and {labels.shape} labels, expected {expected}")
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield row, {"image": image[:, :, None], "label": int(label)}


def read(config: DataConfig) -> Dataset:
    """The data set `fashion_mnist`: uint8 [n, 28, 28, 1], 10 classes."""
    builder = builders.prepare(FashionMnist, config.cache_dir)

    def part(split: str) -> Split:
        images, labels = builders.Records(builder, split).all("image")
        return Split(np.frombuffer(b"".join(images), np.uint8).reshape(-1, 28, 28, 1), labels)

    train, test = part("train"), part("test")
    empty = train.take(np.arange(0))
    return Dataset("fashion_mnist", "image", tuple(CLASSES), train, empty, test)


def source_folder(cache: Path) -> Path:
    """A folder with the four files, each checked: from Debian, else from the authors."""
    try:
        folder = fetch(DEBIAN, cache) / FOLDER
    except SourceUnavailableError as error:
        folder = download_originals(cache, str(error))
    for name, sha256 in FILES.items():
        check_hash(folder / name, sha256)
    return folder


def download_originals(cache: Path, tried: str) -> Path:
    """Download the authors' files into CACHE/fashion-mnist; each is renamed when complete and correct."""
    folder = cache / "fashion-mnist"
    with partial_folder(cache) as partial:
        folder.mkdir(exist_ok=True)
        for name, sha256 in FILES.items():
            if (folder / name).exists():
                continue
            try:
                with urllib.request.urlopen(f"{ORIGINAL}/{name}", timeout=30) as answer:
                    content = answer.read(MAX_FILE_BYTES)
            except OSError as error:
                raise SourceUnavailableError(
                    f"cannot get {name}: {ORIGINAL} does not answer ({error}), and before that: {tried}; "
                    f"or put the four files {', '.join(FILES)} into {folder} by hand"
                ) from error
            actual = hashlib.sha256(content).hexdigest()
            if actual != sha256:
                raise wrong_hash_error(f"{ORIGINAL}/{name}", sha256, actual)
            (partial / name).write_bytes(content)
            (partial / name).replace(folder / name)
    return folder


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes."""
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
        zero, kind, axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{axes}i", content[4 : 4 + 4 * axes])
        if zero != 0 or kind != 8 or min(shape, default=-1) < 0 or len(content) > MAX_FILE_BYTES:
            raise ValueError("not these axes and this many bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise UserError(f"{path} is not an IDX file of unsigned bytes ({error})") from error
