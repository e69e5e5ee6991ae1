"""What a reader is, and the small valid samples that several readers are given."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import helpers

WORDS = ["orbit", "hockey", "kernel", "garden", "comet", "goalie", "thread", "tulip"]
LABELS = ("space", "sport", "code", "plants")


class Reader(NamedTuple):
    """`make` writes a valid sample into an empty folder and names the files to damage; `read` reads the folder."""

    make: Callable[[Path], list[str]]
    read: Callable[[Path], object]


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"text": " ".join(rng.choices(WORDS, k=3)), "label": LABELS[i % 4]} for i in range(count)]


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    texts = [" ".join([f"{seed}-{i}", *rng.choices(WORDS, k=3)]) for i in range(3 * count)]
    return [dict(zip(("anchor", "positive", "negative"), texts[i::count], strict=True)) for i in range(count)]


def write_table(path: Path, table: list[dict[str, Any]]) -> str:
    """Write a table in the format of the suffix; returns the name of the file."""
    helpers.write_table(path, table)
    return path.name
