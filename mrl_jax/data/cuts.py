"""Which examples are held out or taken first: at random but the same in every run, class by class, repeats together."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mrl_jax.system import console
from mrl_jax.system.errors import UserError

SPLIT_SEED = 0x5EED  # of the validation cut: never the training seed, so that every seed is validated on the same rows
NO_WORD = re.compile(r"\W+")


def cut(labels: np.ndarray, fraction: float, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to hold out, both sorted: of each class this fraction is held out (rounded; at least
    one example of a class stays in training).

    Depends on its arguments only, so every run of a study has the same validation set. Groups are taken whole, in the
    random order of their first rows, where they fit into what is still to be held out of each class that they have
    examples of; so a class never has more held out than without groups, and less only by what no group left would fill.

    Args:
        labels: int [n].
        fraction: in [0, 1).
        groups: int [n], ≥ 0, equal for examples that stay on one side; None: each stands alone.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    held_out = np.zeros(len(labels), bool)
    members = None if groups is None else _Members(groups)
    classes, counts = np.unique(labels, return_counts=True)
    room = {label: min(round(fraction * n), n - 1) for label, n in zip(classes.tolist(), counts.tolist(), strict=True)}
    for label in classes.tolist():
        rows = generator.permutation(np.flatnonzero(labels == label))
        if members is None:
            held_out[rows[: room[label]]] = True
            continue
        for row in rows.tolist():
            if not room[label]:
                break
            group = members.of(row)
            needed = dict(zip(*(x.tolist() for x in np.unique(labels[group], return_counts=True)), strict=True))
            if not held_out[row] and all(room[other] >= n for other, n in needed.items()):
                held_out[group] = True
                room |= {other: room[other] - n for other, n in needed.items()}
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class _Members:
    """The rows of each group."""

    def __init__(self, groups: np.ndarray) -> None:
        self.groups, self.order = groups, np.argsort(groups, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(groups))])

    def of(self, row: int) -> np.ndarray:
        """All rows of the group of a row, ascending."""
        group = self.groups[row]
        return self.order[self.starts[group] : self.starts[group + 1]]


def cut_whole_groups(
    labels: np.ndarray, fraction: float, groups: np.ndarray, unit: str
) -> tuple[np.ndarray, np.ndarray]:
    """As `cut`, for `data.group_repeats`: stderr gets how many fewer are held out where a group is too large.

    Args:
        labels, fraction, groups: as for `cut`.
        unit: what a row is, such as `example`, for messages.

    Raises:
        UserError: examples are to be held out, and every group is too large.
    """
    rows, held_out = cut(labels, fraction, groups)
    wanted = len(cut(labels, fraction)[1])
    if len(held_out) == wanted:
        return rows, held_out
    largest = int(np.bincount(groups[rows]).max())
    if not len(held_out):
        raise UserError(
            f"data.group_repeats=true with data.validation_fraction={fraction} holds out none of {len(labels):,} "
            f"{unit}s: all groups of repeats are too large, up to {largest:,}; raise the fraction, or give "
            "data.validation"
        )
    console.say(
        f"data.group_repeats=true: {len(held_out):,} {unit}s are held out instead of {wanted:,}, as groups of "
        f"repeats (up to {largest:,} {unit}s) are not divided"
    )
    return rows, held_out


def same(inputs: Any) -> np.ndarray:
    """Numbers of examples, int64 [n], equal where they count as the same; see `keys`."""
    short = (int.from_bytes(key[:8]) for key in keys(inputs))
    return np.asarray(np.unique(np.fromiter(short, np.uint64, len(inputs)), return_inverse=True)[1], np.int64)


def connected(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The least node of the component of each of `count` nodes, int64 [count], with edges from `a` [e] to `b` [e]."""
    least = np.arange(count)
    while True:
        both, before = np.minimum(least[a], least[b]), least.copy()
        np.minimum.at(least, before[a], both)
        np.minimum.at(least, before[b], both)
        least = least[least]
        if np.array_equal(least, before):
            return least


def keys(inputs: Any) -> Iterator[bytes]:
    """Bytes per example that are equal for examples that count as the same: texts if they hold the same words in the
    same order, whatever their case and punctuation; images and features if all their numbers are."""
    if isinstance(inputs, np.ndarray):
        contents: Iterable[Any] = (np.ascontiguousarray(row) for row in inputs)
    else:
        contents = (normal(str(text)).encode() for text in inputs)
    return (hashlib.blake2b(content, digest_size=16).digest() for content in contents)


def normal(text: str) -> str:
    """The words of a text in lower case; a text without any as it is."""
    return NO_WORD.sub(" ", text.casefold()).strip() or text


def first_per_class(labels: np.ndarray, limit: int) -> np.ndarray:
    """The first rows of each class in proportion to its size, sorted, `limit` in all.

    Every class gets one row before any gets a second share: row r of a class of n is taken at quantile r/n.
    """
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        quantile[rows] = np.arange(len(rows)) / len(rows)
    return np.sort(np.argsort(quantile, kind="stable")[:limit])


def first_rows(count: int, limit: int) -> np.ndarray:
    """`limit` of `count` row numbers, drawn at random but the same in every run, sorted."""
    return np.sort(np.random.default_rng(SPLIT_SEED).permutation(count)[:limit])
