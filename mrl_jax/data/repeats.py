"""Examples that stand in train more than once, or in train and in another part: a model may know these by heart."""

from typing import Any

import numpy as np

from mrl_jax.data.base import Dataset
from mrl_jax.data.cuts import keys

PARTS = ("validation", "test")


def count(dataset: Any) -> dict[str, int]:
    """How many examples repeat one of train: of train itself an earlier one, of validation and test any.

    What counts as the same, `cuts.keys` says. Labels are not looked at. Pairs, mixtures and what stays on disk are not
    counted: empty.
    """
    if not isinstance(dataset, Dataset):
        return {}
    if not all(isinstance(getattr(dataset, name).inputs, list | np.ndarray) for name in ("train", *PARTS)):
        return {}
    known: set[bytes] = set()
    repeated = {"train": 0}
    for key in keys(dataset.train.inputs):
        repeated["train"] += key in known
        known.add(key)
    for name in PARTS:
        repeated[name] = sum(key in known for key in keys(getattr(dataset, name).inputs))
    return repeated


def sentence(repeated: dict[str, int], dataset: Any) -> str | None:
    """What to say of them; None if there are none."""
    parts = [f"{n:,} of {len(getattr(dataset, name)):,} {name}" for name in PARTS if (n := repeated[name])]
    told = (
        [f"{repeated['train']:,} of {len(dataset.train):,} train examples repeat others"] if repeated["train"] else []
    )
    told += [f"{' and '.join(parts)} examples stand in train, too"] if parts else []
    aside = " (case and punctuation aside)" if dataset.kind == "text" else ""
    return "; ".join(told) + aside if told else None
