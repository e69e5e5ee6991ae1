"""CIFAR-10 and CIFAR-100 from the folder of their binary version: `data=cifar data.path=cifar-100-binary`.

    cifar-10-batches-bin  data_batch_1.bin … data_batch_5.bin, test_batch.bin, batches.meta.txt (names of the classes)
    cifar-100-binary      train.bin, test.bin, fine_label_names.txt, coarse_label_names.txt

A record is the label in a byte, of CIFAR-100 the super-class in a byte before it, and 3,072 pixels: red, green and blue
in turn, 32 rows of 32 each. The python version of the archives is pickled, which runs what it likes, and is not read.
Classes of CIFAR-100 are named `super-class/class`, so `evaluation.superclass=/` scores the 20 super-classes.
Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
"""

from pathlib import Path

import numpy as np

from mrl_jax.data.base import Dataset, Split
from mrl_jax.data.config import DataConfig
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import path_of

SIDE, PIXELS = 32, 3 * 32 * 32
TRAIN_10 = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
MAX_FILE_BYTES = 1 << 28  # the largest has 154 MB


def read(config: DataConfig) -> Dataset:
    """The data set in the folder `data.path`: uint8 [n, 32, 32, 3], 10 or 100 classes; validation is empty.

    Raises `UserError` for a folder without these files, a file that ends within a record, a label that has no name, or
    a class in two super-classes.
    """
    if config.path is None:
        raise UserError("data=cifar needs data.path, the unpacked folder of CIFAR-10 or CIFAR-100, binary version")
    folder = path_of("data.path", config.path)
    if not folder.is_dir():
        raise UserError(f"data.path={config.path}: there is no such folder")
    if (folder / "train.bin").is_file():
        return cifar100(folder)
    if (folder / TRAIN_10[0]).is_file():
        return cifar10(folder)
    raise UserError(
        f"data.path={config.path} has neither train.bin (CIFAR-100) nor {TRAIN_10[0]} (CIFAR-10); the binary version "
        "of the archive is needed, not the python version, which is pickled"
    )


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10."""
    names = label_names(folder / "batches.meta.txt", 10)
    train = [split(folder / name, 1, names) for name in TRAIN_10]
    images, labels = (np.concatenate(parts) for parts in zip(*((one.inputs, one.labels) for one in train), strict=True))
    whole = Split(images, labels)
    return Dataset(
        "cifar10", "image", names, whole, whole.take(np.arange(0)), split(folder / "test_batch.bin", 1, names)
    )


def cifar100(folder: Path) -> Dataset:
    """CIFAR-100, whose classes have the names of their super-classes before theirs."""
    fine = label_names(folder / "fine_label_names.txt", 100)
    coarse = label_names(folder / "coarse_label_names.txt", 20)
    of_class: dict[int, int] = {}
    parts = []
    for name in ("train.bin", "test.bin"):
        part = split(folder / name, 2, fine)
        above = records(folder / name, 2)[:, 0]
        if len(above) and above.max() >= len(coarse):
            raise UserError(f"{folder / name} has the super-class {above.max()}; it is below {len(coarse)}")
        for label, upper in sorted({*zip(part.labels.tolist(), above.tolist(), strict=True)}):
            if of_class.setdefault(label, upper) != upper:
                both = f"{coarse[of_class[label]]} and {coarse[upper]}"
                raise UserError(f"{folder / name} has the class {fine[label]} in two super-classes, {both}")
        parts.append(part)
    classes = tuple(f"{coarse[of_class[i]]}/{name}" if i in of_class else name for i, name in enumerate(fine))
    train, test = parts
    return Dataset("cifar100", "image", classes, train, train.take(np.arange(0)), test)


def split(path: Path, labels: int, names: tuple[str, ...]) -> Split:
    """The images of a file, and the last of its `labels` labels."""
    rows = records(path, labels)
    own = rows[:, labels - 1].astype(np.int32)
    if own.max() >= len(names):
        raise UserError(f"{path} has the label {own.max()}; it is below {len(names)}")
    pixels = rows[:, labels:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(pixels), own)


def records(path: Path, labels: int) -> np.ndarray:
    """uint8 [n, labels + 3072]."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    size = labels + PIXELS
    if not content or len(content) % size or len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path} has {len(content):,} bytes; a multiple of {size:,} is needed, a record for each image")
    return np.frombuffer(content, np.uint8).reshape(-1, size)


def label_names(path: Path, count: int) -> tuple[str, ...]:
    """The names of the classes, one a line."""
    try:
        names = tuple(path.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(set(names)) != count or len(names) != count:
        raise UserError(f"{path} has {len(set(names))} different names; {count} are needed")
    return names
