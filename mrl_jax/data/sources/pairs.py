"""A user's own pairs of texts: JSONL, CSV, TSV or Parquet files whose columns say what they are.

    {"anchor": "who wrote Emma?", "positive": "Jane Austen wrote Emma.", "negative": "Emma Thompson is an actor."}
    {"sentence1": "A plane is taking off.", "sentence2": "An air plane is taking off.", "score": 5.0}

Hard negatives are optional, of any number; columns of other names are not read. `data.test` may be of another kind than
`data.train`: pairs without scores there are a search among all its positives and negatives. A training file larger than
memory stays on disk (`data.streaming`); of its pairs only row numbers and scores are held.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax.data import disk_cache
from mrl_jax.data.base import DataConfig, PairDataset, Pairs, StreamedTexts
from mrl_jax.data.pair_ops import held_apart, paired, ranking
from mrl_jax.data.readers.records import SUFFIXES, Record, existing, is_streamed, records, shown, text_field
from mrl_jax.errors import UserError
from mrl_jax.files import path_of

ROLES = (  # names of which a file may have one
    ("anchor", "query", "question"),
    ("positive", "document", "answer", "passage"),
    ("sentence1", "text1"),
    ("sentence2", "text2"),
)
ALLOWED = (
    "anchor (or query, question) and positive (or document, answer, passage), with negative, negative_2, … if there "
    "are any; or sentence1, sentence2 (or text1, text2) and score"
)
FLOAT32_MAX = float(np.finfo(np.float32).max)


class Layout(NamedTuple):
    """What the columns of a file are."""

    texts: tuple[str, ...]  # anchor, positive and negatives, or two sentences
    scored: bool

    @property
    def columns(self) -> list[str]:
        """The names of all columns to read."""
        return [*self.texts, "score"] if self.scored else [*self.texts]


def read(config: DataConfig) -> PairDataset:
    """Read `data.train`, `data.test` and, if given, `data.validation`; else validation is empty.

    Raises `UserError` naming the file and the line of the first thing that is wrong.
    """
    if is_streamed(config):
        train = scanned("pairs", "data.train", config.train, config.cache_dir)
    else:
        train = read_file("pairs", "data.train", config.train)
    test = read_file("pairs", "data.test", config.test)
    validation = read_file("pairs", "data.validation", config.validation) if config.validation else no_pairs()
    dataset = PairDataset(
        name=Path(config.train or "").stem,
        kind="text",
        train=train,
        validation=validation,
        test=ranking(test) if test.scores is None else test,
    )
    return held_apart(dataset)


def no_pairs() -> Pairs:
    """Pairs of texts of which there are none."""
    return Pairs([], np.zeros((0, 2), np.int32))


def read_file(source: str, key: str, name: str | None) -> Pairs:
    """All pairs of a file, checked."""
    texts, scores = [], []
    for row, score in rows(source, key, name):
        texts.append(row)
        if score is not None:
            scores.append(score)
    if not texts:
        raise UserError(f"{key}={name} is empty")
    return paired(list(zip(*texts, strict=True)), np.array(scores, np.float32) if scores else None)


def scanned(source: str, key: str, name: str | None, cache_dir: str | None) -> Pairs:
    """As `read_file`, with the texts left in the file: the same table of distinct texts, in the same order."""
    path = existing(key, needed(source, key, name), SUFFIXES)
    digest = disk_cache.sha256(path)
    found = disk_cache.distinct(disk_cache.folder(cache_dir, "pairs", digest), lambda: rows(source, key, name))
    if not len(found.columns):
        raise UserError(f"{key}={name} is empty")
    count, columns = found.columns.shape

    def texts() -> Iterator[str]:
        return (row[column] for column in range(columns) for row, _ in rows(source, key, name))

    return Pairs(StreamedTexts(texts, count * columns, digest, found.first), found.columns, found.scores)


def needed(source: str, key: str, name: str | None) -> str:
    """The file that a key must name."""
    if name is None:
        raise UserError(f"data={source} needs {key}, a file ending in {', '.join(SUFFIXES)}")
    return name


def rows(source: str, key: str, name: str | None) -> Iterator[tuple[list[str], float | None]]:
    """The texts and, if there is one, the score of every pair of a file, checked."""
    name = needed(source, key, name)
    path = path_of(key, name)
    layouts: dict[tuple[str, ...], Layout] = {}  # of each combination of keys; only JSONL has more than one
    for place, record in records(key, name, chosen):
        names = tuple(record)
        if names not in layouts:
            layouts[names] = layout(f"{path}, {place}", names)
        kind = layouts[names]
        expected = next(iter(layouts.values()))
        if kind != expected:
            here, before = ", ".join(kind.columns), ", ".join(expected.columns)
            raise UserError(f"{path}, {place}: the row has {here}; those before have {before}")
        texts = [checked_text(path, place, record, column) for column in kind.texts]
        yield texts, checked_score(path, place, record) if kind.scored else None


def chosen(path: Path, names: list[str]) -> list[str]:
    """The columns to read of those that a file has."""
    return layout(str(path), names).columns


def layout(where: str, names: list[str] | tuple[str, ...]) -> Layout:
    """What the columns are; `UserError` naming them and what is allowed if that is not clear."""
    found = [[name for name in names if name in role] for role in ROLES]
    for same in found:
        if len(same) > 1:
            raise UserError(f"{where} has the columns {same[0]} and {same[1]}, which mean the same; keep one of them")
    anchor, positive, first, second = found
    negatives = sorted({name for name in names if name.startswith("negative")})
    if anchor and positive and not (first or second or "score" in names):
        return Layout((*anchor, *positive, *negatives), False)
    if first and second and "score" in names and not (anchor or positive or negatives):
        return Layout((*first, *second), True)
    raise UserError(f"{where} has the columns {', '.join(names)}; allowed are {ALLOWED}")


def checked_text(path: Path, place: str, record: Record, column: str) -> str:
    """The text in a column, or a `UserError` that says what is there."""
    text = text_field(path, place, record, column)
    if not text.strip():
        raise UserError(f"{path}, {place}: {column} is empty")
    return text


def checked_score(path: Path, place: str, record: Record) -> float:
    """The score, or a `UserError` that says what is there."""
    value = record["score"]
    try:
        score = float("nan" if isinstance(value, bool) or value is None else value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not abs(score) <= FLOAT32_MAX:
        raise UserError(f"{path}, {place}: score must be a finite number, got {shown(value)}")
    return score
