"""Classes by name: those of a training file, and the number of each label among them."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mrl_jax.system import console
from mrl_jax.system.errors import UserError


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels, sorted: as numbers if all are whole numbers (2 before 10), else as text."""
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):  # of any length: Python's int() has a limit
        return tuple(sorted(names, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name)))
    return tuple(sorted(names))


def class_numbers(
    labels: Sequence[str], classes: Sequence[str], train: object, describe: Callable[[int], str]
) -> np.ndarray:
    """The number of the class of each of n labels, int32 [n].

    Args:
        labels: n of them.
        classes: the names of the classes, those of the training examples.
        train: where these are, for the message.
        describe: `i` → where label i stands and what it is, "b.jsonl, line 7: the label 'x'".

    Raises:
        UserError: for the first label that no class has.
    """
    index = {name: number for number, name in enumerate(classes)}
    for i, label in enumerate(labels):
        if label not in index:
            raise UserError(f"{describe(i)} does not occur in {train}")
    return np.array([index[label] for label in labels], np.int32)


def say_alike(classes: Iterable[str], path: str | None) -> None:
    """Say so if names of classes differ in nothing but case and white space: slips of the pen."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if groups:
        more = f"; {len(groups):,} groups of classes are like that" if len(groups) > 1 else ""
        console.say(
            f"{path}: {' and '.join(map(repr, groups[0]))} differ only in case or white space, and are different "
            f"classes{more}"
        )
