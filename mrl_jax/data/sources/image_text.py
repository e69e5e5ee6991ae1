"""A user's own pictures with captions: JSONL, CSV, TSV or Parquet files with the columns `image` and `text`.

    {"image": "pictures/0012.jpg", "text": "two dogs on a beach"}        several captions: several rows, or a list

`image` is a path relative to the file, or in Parquet the picture itself, as the package datasets writes it. Columns may
have other names, see `ROLES`. A caption and its picture are a pair; all captions of a picture, and all pictures of a
caption, answer each other and are no negatives. Pictures are the same where their files are, byte by byte. No picture
is in two splits, whereas captions may be: one may fit two pictures.

Pictures are read as `data=images` reads them: one that is missing or damaged is left out, counted and named.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.data import disk_cache
from mrl_jax.data.base import PairDataset, Pairs, Ranking
from mrl_jax.data.captioned import CaptionedImages
from mrl_jax.data.config import DataConfig
from mrl_jax.data.pair_ops import row_ids
from mrl_jax.data.readers import image_files
from mrl_jax.data.readers.images import Cover, StoredImages
from mrl_jax.data.readers.records import (
    FORMATS,
    Record,
    abbreviate,
    records,
    require_file,
    require_name,
    text_field,
)
from mrl_jax.data.relevance import search_of
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError

ROLES = {"image": ("image", "file_name"), "text": ("text", "caption", "captions")}  # allowed names of the columns
KEY_BYTES = 16  # of the hash that tells pictures apart


class Captioned(NamedTuple):
    """The pictures of a split that can be decoded, each once, and their captions."""

    files: Any  # `image_files.FilesBelow` or `ParquetImages`
    rows: np.ndarray  # int [n], of `files`
    keys: list[bytes]  # equal where pictures are, of any split
    captions: list[list[str]]  # of each picture


def read(config: DataConfig) -> PairDataset:
    """Read `data.train`, `data.test` and, if given, `data.validation` (else validation is empty).

    Raises `UserError` naming the file and the line of the first thing that is wrong, or pictures most of which are
    missing or damaged.
    """
    if config.image_size is not None and config.image_size < 1:
        raise UserError(f"data.image_size={config.image_size} must be at least 1")
    test = find("data.test", config.test, config.cache_dir)
    train = find("data.train", config.train, config.cache_dir)
    none = train._replace(rows=train.rows[:0], keys=[], captions=[])
    validation = find("data.validation", config.validation, config.cache_dir) if config.validation else none
    validation = without(validation, test.keys, "validation", "the test")
    train = without(train, [*test.keys, *validation.keys], "training", "validation or the test")
    if not train.keys:
        raise UserError(f"data.train={config.train} has no picture that is not in validation or the test too")
    return PairDataset(
        name=Path(config.train or "").stem,
        kind="image-text",
        train=pairs(train, config),
        validation=pairs(validation, config),
        test=ranking(pairs(test, config)),
    )


def find(key: str, name: str | None, cache_dir: str | None) -> Captioned:
    """The pictures and captions of a file, checked."""
    name = require_name("image_text", key, name)
    path = require_file(key, name, FORMATS)
    inside = _embedded(key, path) if path.suffix.lower() == ".parquet" else None
    files: Any
    files, captions = inside or _by_path(key, name, path)
    if not len(files):
        raise UserError(f"{key}={name} is empty")
    rows = image_files.without_broken(key, name, files, cache_dir)
    of_key: dict[bytes, tuple[int, list[str]]] = {}
    for row, digest in zip(rows.tolist(), _keys(files, rows, cache_dir), strict=True):
        of_key.setdefault(digest, (row, []))[1].extend(captions[row])
    first = np.array([row for row, _ in of_key.values()], np.int32)
    return Captioned(files, first, list(of_key), [list(dict.fromkeys(texts)) for _, texts in of_key.values()])


def _by_path(key: str, name: str, path: Path) -> tuple[image_files.FilesBelow, list[list[str]]]:
    """The pictures that a table names, and the captions of each."""
    captions: dict[str, list[str]] = {}
    for place, record in records(key, name, choose_columns):
        image, text = roles(f"{path}, {place}", list(record))
        captions.setdefault(text_field(path, place, record, image), []).extend(texts_of(path, place, record, text))
    return image_files.FilesBelow(path.parent, tuple(captions)), list(captions.values())


def _embedded(key: str, path: Path) -> tuple[image_files.ParquetImages, list[list[str]]] | None:
    """The pictures that a Parquet file holds, and the captions of each; None where it names them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable Parquet file ({reason})") from error
    image, text = roles(str(path), schema.names)
    inside = schema.field(image).type
    if image != "image" or not (pa.types.is_struct(inside) or pa.types.is_binary(inside)):
        return None
    files, values, _ = image_files.parquet_images(key, [path], text)
    captions = [texts_of(path, f"row {row}", {text: value}, text) for row, value in enumerate(values, 1)]
    return files, captions


def roles(where: str, names: list[str]) -> tuple[str, str]:
    """The columns of the picture and of its text; raises `UserError` where that is not clear."""
    found = []
    for role, allowed in ROLES.items():
        if (name := column_of(where, names, role)) is None:
            raise UserError(f"{where} has no {role} (or {', '.join(allowed[1:])}); it has {', '.join(names)}")
        found.append(name)
    return found[0], found[1]


def column_of(where: str, names: Collection[str], role: str) -> str | None:
    """The column of a role; None where there is none. Raises `UserError` where there are two."""
    there = [name for name in names if name in ROLES[role]]
    if len(there) > 1:
        raise UserError(f"{where} has the columns {there[0]} and {there[1]}, which mean the same; keep one of them")
    return there[0] if there else None


def choose_columns(path: Path, names: list[str]) -> list[str]:
    """The columns to read, of those that a file has."""
    return list(roles(str(path), names))


def texts_of(path: Path, place: str, record: Record, column: str) -> list[str]:
    """The caption in a column, or the list of them; else a `UserError` that says what is there."""
    value = record.get(column)
    items = {column: value}
    if isinstance(value, list):
        items = {f"{column}[{number}]": item for number, item in enumerate(value)}
        if not items:
            raise UserError(f"{path}, {place}: {column} is empty; a picture needs a caption, got {abbreviate(value)}")
    texts = [text_field(path, place, items, item) for item in items]
    for item, text in zip(items, texts, strict=True):
        if not text.strip():
            raise UserError(f"{path}, {place}: {item} is empty")
    return texts


def _keys(files: Any, rows: np.ndarray, cache_dir: str | None) -> list[bytes]:
    """Of each picture a hash of its file. They are kept, as reading all files may take minutes."""
    place = disk_cache.folder(cache_dir, "pictures", files.digest)

    def build(partial: Path) -> None:
        found = b"".join(hashlib.blake2b(files.read(row), digest_size=KEY_BYTES).digest() for row in rows.tolist())
        (partial / "keys.bin").write_bytes(found)

    disk_cache.build_once(place, build)
    found = (place / "keys.bin").read_bytes() if (place / "keys.bin").is_file() else b""
    if len(found) != KEY_BYTES * len(rows):
        raise UserError(f"{place} is damaged; delete it, and the pictures are read again")
    return [found[i : i + KEY_BYTES] for i in range(0, len(found), KEY_BYTES)]


def without(split: Captioned, taken: list[bytes], name: str, owner: str) -> Captioned:
    """The pictures that `owner` does not have; says how many it has."""
    known = set(taken)
    stays = np.array([key not in known for key in split.keys], bool)
    if stays.all():
        return split
    say(f"{name}: dropped {(~stays).sum():,} of {len(stays):,} pictures, which {owner} has too")
    kept = np.flatnonzero(stays).tolist()
    return split._replace(
        rows=split.rows[stays], keys=[split.keys[i] for i in kept], captions=[split.captions[i] for i in kept]
    )


def pairs(split: Captioned, config: DataConfig) -> Pairs:
    """Every caption with its picture, in the order of the file."""
    texts = list(dict.fromkeys(text for captions in split.captions for text in captions))
    row_of = {text: row for row, text in enumerate(texts)}
    columns = [
        (row_of[text], len(texts) + picture) for picture, captions in enumerate(split.captions) for text in captions
    ]
    images: Any = StoredImages(split.files, split.rows, config.streaming)
    if config.image_size is not None:
        images = images.prepared(Cover(config.image_size))
    table: Any = CaptionedImages(texts, images)
    return Pairs(table, np.array(columns, np.int32).reshape(-1, 2), held_out_by=1)


def ranking(part: Pairs) -> Ranking:
    """The search for pictures by their captions. Ids are row numbers."""
    found, table = search_of(part.columns), part.table
    assert isinstance(table, CaptionedImages)
    image_ids = [str(row) for row in range(len(table.images))]
    return Ranking(table.texts, table.images, found.judgments, row_ids(table.texts), image_ids)
