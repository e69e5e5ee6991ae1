"""Texts without labels: a `Dataset` of no classes, for losses that learn from the texts themselves."""

from dataclasses import dataclass
from typing import ClassVar

from mrl_jax.data.base import Dataset, Split
from mrl_jax.data.config import Task


@dataclass(frozen=True)
class UnlabelledSplit(Split):
    """Texts without labels, which are 0."""

    contents: ClassVar = "texts"


@dataclass(frozen=True)
class TextDataset(Dataset):
    """Texts without labels, in three disjoint parts; there are no classes."""

    task: ClassVar[Task] = "texts"
