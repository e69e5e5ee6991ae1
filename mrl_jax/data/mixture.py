"""Several data sets for one encoder, each learnt from in its own way, and their shares of the steps.

    share of source i  ∝  w_i · n_i^(1/T)

with n_i training examples and the weight w_i. T = 1 goes through all sources equally often (`proportional`), T → ∞
gives each as many steps (`uniform`), and what lies between raises small sources without repeating them as often
(`temperature`, as for the languages of multilingual models: Arivazhagan et al. 2019, arXiv:1907.05019).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from mrl_jax.data.base import Dataset, PairDataset
from mrl_jax.data.config import DataConfig, Task


@dataclass(frozen=True)
class MixedDataset:
    """Several data sets of one kind, by the names that the configuration gives them."""

    task: ClassVar[Task] = "mixture"

    name: str
    kind: Literal["text", "image", "features"]
    parts: Mapping[str, Dataset | PairDataset]

    def assemble(self, config: DataConfig) -> "MixedDataset":
        """Every source was assembled by its own section."""
        return self

    @property
    def raw(self) -> Any:
        """What a tokenizer learns from: the training inputs of all sources."""
        each: list[Any] = [part.train.raw for part in self.parts.values()]
        if self.kind == "image":  # nothing is learnt from images
            return each[0]
        return np.concatenate(each) if self.kind == "features" else [text for texts in each for text in texts]


AnyDataset = TypeVar("AnyDataset", bound=Dataset | PairDataset | MixedDataset)


def shares(config: DataConfig, sizes: Sequence[int]) -> np.ndarray:
    """The share of the steps of each source of a mixture, float64 [S], from its numbers of training examples."""
    power = {"uniform": 0.0, "temperature": 1 / (config.mixing_temperature or 1)}.get(str(config.mixing), 1.0)
    weights = np.array([source.weight for source in (config.sources or {}).values()])
    scaled = weights * np.array(sizes, np.float64) ** power
    return np.asarray(scaled / scaled.sum())


def schedule(shares_S: np.ndarray, steps: int) -> Iterator[int]:
    """The source of each step from the first on: the one that lags behind its share the most, of equals the first.

    No drawing: after any number of steps each source has had its share of them to within a few steps, and all seeds
    train on the same source at the same time, so that they can share a compiled step.
    """
    done = np.zeros(len(shares_S))
    for step in range(1, steps + 1):
        source = int(np.argmax(shares_S * step - done))
        done[source] += 1
        yield source
