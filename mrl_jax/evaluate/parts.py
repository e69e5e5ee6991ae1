"""Parts of the classes: by how many training examples they have, and super-classes of which they are members."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrl_jax.system.errors import UserError, nearest

FREQUENCIES = ("head", "middle", "tail")


def by_frequency(labels: np.ndarray, classes: int) -> np.ndarray:
    """For each class whether it is in the head (0), middle (1) or tail (2): thirds of the classes by their examples.

    Of classes with equally many the first comes first. Where three does not divide the classes, the head, then the
    middle has one more.

    Args:
        labels: classes of the training examples, int [n].
        classes: C.

    Returns:
        int [C].
    """
    order = np.argsort(-np.bincount(labels, minlength=classes), kind="stable")
    part = np.empty(classes, np.int64)
    for number, members in enumerate(np.array_split(order, len(FREQUENCIES))):
        part[members] = number
    return part


def superclasses(rule: str, classes: Sequence[str]) -> np.ndarray:
    """The number of each class's super-class, int [C].

    Args:
        rule: a separator, before the first of which a class has the name of its super-class, or the path of a JSON file
            with an object from class to super-class, perhaps of more classes, such as those of `data.hold_out`.
        classes: names of the C classes.

    Raises:
        UserError: the rule is empty; the file cannot be read, or lacks a class; there is one super-class, or as many
            as classes.
    """
    key = f"evaluation.superclass={rule}"
    if not rule:
        raise UserError(f"{key} is empty; give a separator, or a .json file from class to super-class")
    if rule.lower().endswith(".json"):
        members = _read(key, Path(rule))
        if missing := [name for name in classes if name not in members]:
            raise UserError(
                f"{key} has no super-class for {missing[0]!r}{nearest(missing[0], members)}; {len(missing)} of "
                f"{len(classes)} are missing"
            )
        names = [members[name] for name in classes]
    else:
        names = [name.split(rule, 1)[0] for name in classes]
    count = len(set(names))
    if not 1 < count < len(classes):
        raise UserError(
            f"{key} makes {count} super-class{'es' if count != 1 else ''} of {len(classes)} classes such as "
            f"{classes[0]!r}; give a separator that stands in their names, or a .json file from class to super-class"
        )
    return np.unique(names, return_inverse=True)[1]


def _read(key: str, path: Path) -> dict[str, str]:
    try:
        members = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key} cannot be read: {error}") from None
    if not isinstance(members, dict) or not all(isinstance(name, str) for name in members.values()):
        raise UserError(f"{key} does not hold an object from class to super-class, both text")
    return members
