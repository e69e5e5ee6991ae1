"""A user's own labelled images: a folder for each class, or Parquet files with the columns `image` and `label`.

    train/cat/anything.jpg   train/dog/deep/below.png   test/cat/…           data.train=train data.test=test

Images of any format that `readers.images.read_image` knows become upright RGB. With `data.image_size` they are scaled
and cropped to squares; without it, the encoder prepares them as its weights want them. A split that would take
`MAX_DECODED_BYTES` in memory is read from disk batch by batch (`data.streaming`). Every image is decoded once before
training, and one that cannot be is left out and named.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.data.base import Dataset, Split
from mrl_jax.data.classes import class_names, class_numbers, say_alike
from mrl_jax.data.config import DataConfig
from mrl_jax.data.readers import image_files
from mrl_jax.data.readers.decoders import of_workers
from mrl_jax.data.readers.images import Cover, StoredImages
from mrl_jax.data.readers.records import abbreviate
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import path_of


class Labelled(NamedTuple):
    """The images of a split, and the name of the class of each."""

    files: Any  # `image_files.FilesBelow` or `ParquetImages`
    rows: np.ndarray  # int32 [n], of those that can be decoded
    labels: list[str]  # of every image


def read(config: DataConfig) -> Dataset:
    """Read `data.train`, `data.test` and, if given, `data.validation` (else the validation split is empty).

    Raises `UserError` for what is no such folder or file, a class without images, and images most of which are damaged.
    """
    if config.image_size is not None and config.image_size < 1:
        raise UserError(f"data.image_size={config.image_size} must be at least 1")
    names = {"train": config.train, "test": config.test, "validation": config.validation}
    parts = {
        part: find(f"data.{part}", name, config.cache_dir)
        for part, name in names.items()
        if part != "validation" or name
    }
    train = parts["train"]
    classes = class_names(train.labels)
    if empty := sorted(set(classes) - {train.labels[row] for row in train.rows.tolist()}):
        raise UserError(f"data.train={config.train}: no image of the class {empty[0]!r} can be decoded")
    say_alike(classes, config.train)
    decoders = of_workers(config.workers)

    def split(part: str) -> Split:
        found = parts.get(part)
        rows = train.rows[:0] if found is None else found.rows
        files, labels = (train if found is None else found)[::2]
        names = [labels[row] for row in rows.tolist()]

        def describe(i: int) -> str:
            return f"{files.name(int(rows[i]))}: the class {names[i]!r}"

        numbers = class_numbers(names, classes, config.train, describe)
        images: Any = StoredImages(files, rows, config.streaming, decoders=decoders)
        if config.image_size is not None:
            images = images.prepared(Cover(config.image_size))
        return Split(images, numbers)

    return Dataset(
        name=Path(config.train or "").stem,
        kind="image",
        classes=classes,
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
    )


def find(key: str, name: str | None, cache_dir: str | None) -> Labelled:
    """The images of a split: of a folder of folders, a Parquet file, or a folder of those."""
    if name is None:
        raise UserError(f"data=images needs {key}, a folder with a folder of images for each class, or a Parquet file")
    path = path_of(key, name)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise UserError(f"{key}={name}: a folder with a folder for each class, or a file .parquet, is needed")
        files: Any
        files, labels = in_parquet(key, [path])
    elif not path.is_dir():
        raise UserError(f"{key}={name}: there is no such folder")
    else:
        inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        folders = [entry.name for entry in inside if entry.is_dir()]
        tables = [entry for entry in inside if entry.suffix.lower() == ".parquet"]
        if folders:
            files, labels = in_folders(key, name, path, folders)
        elif tables:
            files, labels = in_parquet(key, tables)
        else:
            raise UserError(f"{key}={name} has no folders in it; a folder of images for each class is needed")
    if not len(files):
        raise UserError(f"{key}={name} is empty")
    return Labelled(files, image_files.without_broken(key, name, files, cache_dir), labels)


def in_folders(key: str, name: str, path: Path, folders: list[str]) -> tuple[image_files.FilesBelow, list[str]]:
    """The images below a folder, and the class of each."""
    paths: list[str] = []
    labels: list[str] = []
    for folder in folders:
        found = list(image_files.files_below(path, folder))
        if not found:
            raise UserError(
                f"{key}={name}: the folder {folder} has no images in it; their names end in "
                f"{', '.join(image_files.SUFFIXES)}"
            )
        paths += found
        labels += [folder] * len(found)
    return image_files.FilesBelow(path, tuple(paths)), labels


def in_parquet(key: str, tables: list[Path]) -> tuple[image_files.ParquetImages, list[str]]:
    """The images of Parquet files, and the class of each: its name, or its number where the files have no names."""
    files, labels, names = image_files.parquet_images(key, tables, "label")
    for row, label in enumerate(labels):
        if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
            raise UserError(f"{files.name(row)}: label must be a string or a whole number, got {abbreviate(label)}")
        labels[row] = names[label] if names and isinstance(label, int) and 0 <= label < len(names) else str(label)
    return files, labels
