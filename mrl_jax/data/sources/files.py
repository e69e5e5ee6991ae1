"""A user's own labelled texts: JSONL, CSV, TSV or Parquet files with the columns `text` and `label`.

    {"text": "the goalie stopped 31 shots", "label": "hockey"}

Labels may be strings or whole numbers; both become class names (strings). The classes are those of the training file.
Files that exceed memory stay on disk (`data.streaming`), and only their labels are held in memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax.data import disk_cache
from mrl_jax.data.base import Dataset, Split
from mrl_jax.data.classes import class_names, class_numbers, say_alike
from mrl_jax.data.config import DataConfig
from mrl_jax.data.inputs import StreamedTexts
from mrl_jax.data.readers.records import (
    FORMATS,
    Record,
    abbreviate,
    is_streamed,
    need_unicode,
    records,
    require_file,
    require_name,
    text_field,
)
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import path_of


class TextRow(NamedTuple):
    """A checked example and its place in the file."""

    place: str  # "line 7" or, in Parquet, "row 7"; from 1
    text: str
    label: str


def read(config: DataConfig) -> Dataset:
    """Read `data.train`, `data.test` and, if given, `data.validation` (else the validation split is empty).

    Raises `UserError` naming the file and the line of the first thing that is wrong.
    """
    if is_streamed(config):
        return stream(config)
    train = rows("data.train", config.train)
    test = rows("data.test", config.test)
    validation = rows("data.validation", config.validation) if config.validation else []
    classes = class_names(row.label for row in train)
    say_alike(classes, config.train)

    def part(examples: list[TextRow], path: str | None) -> Split:
        def describe(i: int) -> str:
            return f"{path}, {examples[i].place}: the label {examples[i].label!r}"

        numbers = class_numbers([row.label for row in examples], classes, config.train, describe)
        return Split([row.text for row in examples], numbers)

    return Dataset(
        name=Path(config.train or "").stem,
        kind="text",
        classes=classes,
        train=part(train, config.train),
        validation=part(validation, config.validation),
        test=part(test, config.test),
    )


def rows(key: str, name: str | None) -> list[TextRow]:
    """All examples of a file, checked."""
    name = require_name("files", key, name)
    path = path_of(key, name)
    examples = [check_row(path, place, record) for place, record in records(key, name, choose_columns)]
    if not examples:
        raise UserError(f"{key}={name} is empty")
    return examples


def stream(config: DataConfig) -> Dataset:
    """As `read`, but only labels are held in memory; texts are read on demand."""
    files = {"train": config.train, "test": config.test, "validation": config.validation}
    parts = {
        part: scan(f"data.{part}", require_name("files", f"data.{part}", name), config.cache_dir)
        for part, name in files.items()
        if part != "validation" or name
    }
    classes = class_names(parts["train"][1].names)
    say_alike(classes, config.train)

    def part(name: str) -> Split:
        if name not in parts:
            return Split([], np.zeros(0, np.int32))
        texts, labels = parts[name]

        def describe(i: int) -> str:
            return f"{files[name]}, {labels.places[i]}: the label {labels.names[i]!r}"

        return Split(texts, class_numbers(labels.names, classes, config.train, describe)[labels.rows])

    return Dataset(
        name=Path(config.train or "").stem,
        kind="text",
        classes=classes,
        train=part("train"),
        validation=part("validation"),
        test=part("test"),
    )


def scan(key: str, name: str, cache_dir: str | None) -> tuple[StreamedTexts, disk_cache.Labels]:
    """The texts of a file and its labels; every row is checked."""
    path = require_file(key, name, FORMATS)

    def examples() -> Iterator[tuple[str, str]]:
        for place, record in records(key, name, choose_columns):
            row = check_row(path, place, record)
            yield row.place, row.label

    def texts() -> Iterator[str]:
        return (record["text"] for _, record in records(key, name, choose_columns))

    digest = disk_cache.file_digest(path)
    labels = disk_cache.labels(disk_cache.folder(cache_dir, "labels", digest), examples)
    if not len(labels.rows):
        raise UserError(f"{key}={name} is empty")
    return StreamedTexts(texts, len(labels.rows), digest), labels


def check_row(path: Path, place: str, record: Record) -> TextRow:
    """The record as a `TextRow`, or a `UserError` that says what is missing or of the wrong type."""
    text, label = text_field(path, place, record, "text"), record.get("label")
    if label is None or label == "":
        raise UserError(f"{path}, {place}: the row has no label")
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise UserError(f"{path}, {place}: label must be a string or a whole number, got {abbreviate(label)}")
    need_unicode(path, place, "label", str(label))
    return TextRow(place, text, str(label))


def choose_columns(path: Path, names: list[str]) -> list[str]:
    """The columns `text` and `label`; raises `UserError` unless both are there."""
    for column in ("text", "label"):
        if column not in names:
            raise UserError(f"{path} has no column {column}; its columns are {', '.join(names)}")
    return ["text", "label"]
