"""An arm of a comparison is a row of loss weights.

With K nesting dims and both kinds of heads a row has 2K entries, K for the separate heads and K for the tied one:

    mrl          (1 … 1 | 0 … 0)      a head a granularity
    mrl_e        (0 … 0 | 1 … 1)      one tied head
    mrl_sampled  (1 … 1 | 0 … 0)      as mrl, but each step keeps a random few of the granularities
    ff(k)        (0 … 1 … 0 | 0 … 0)  the independently trained fixed-size model of width m_k

Everything else (data order, initial parameters, dropout, optimiser, compiled step) is the same for the arms of a seed,
so their differences are paired by construction. The post-hoc arms are not trained: they compress the embeddings of
ff(K), see `compress.py`. Nor are the untuned arms, the encoder as it was before training: its prefixes and its
principal directions, for pretrained weights.

Where pairs are trained on there is no head: the row weighs the contrastive loss of each granularity, and no mrl_e.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.errors import UserError, one_of

TRAINED = ("mrl", "mrl_e", "mrl_sampled", "ff")
POSTHOC = ("truncated", "random_subset", "random_projection", "pca", "pca_whitened")
UNTUNED = ("untuned", "untuned_pca")
NAMES = (*TRAINED, *POSTHOC, *UNTUNED)
FOR_CLASSES = (*TRAINED, *POSTHOC)  # what `all` stands for
FOR_PAIRS = tuple(name for name in NAMES if name != "mrl_e")


class LossWeights(NamedTuple):
    """What makes a member an arm, as arguments of the compiled step."""

    weights: Any  # float32 [kinds, K]
    sampled: Any  # bool []: keep a random subset of the granularities each step


@dataclass(frozen=True)
class Arm:
    """One arm: its name, the head that it reads (`separate` or `tied`) and its weight for each granularity, [K]."""

    name: str
    head: str
    weights: tuple[float, ...]
    width: int | None = None  # the fixed width of an `ff` arm; None for nested arms

    @property
    def label(self) -> str:
        return self.name if self.width is None else f"{self.name}{self.width}"

    def trained(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The nesting dims at which this arm has a trained classifier."""
        return tuple(m for m, weight in zip(dims, self.weights, strict=True) if weight > 0)

    def row(self, kinds: Sequence[str]) -> LossWeights:
        """The arm's loss weights in a program that holds the head kinds `kinds`."""
        weights = [np.asarray(self.weights, np.float32) * (kind == self.head) for kind in kinds]
        return LossWeights(np.stack(weights), np.asarray(self.name == "mrl_sampled"))


@dataclass(frozen=True)
class Member:
    """One member of a population: an arm trained from one seed."""

    arm: Arm
    seed: int

    @property
    def label(self) -> str:
        return f"{self.arm.label}-seed{self.seed}"


def expand(names: Sequence[str], dims: Sequence[int], weights: Sequence[float] | None = None) -> tuple[Arm, ...]:
    """The trained arms among `names`; `ff` stands for one fixed-size arm at each nesting dim, `all` for every name.

    `weights` [K] is the relative importance of the granularities in the nested arms (ones by default).
    """
    names = _named(names)
    nested = tuple(float(c) for c in weights) if weights is not None else (1.0,) * len(dims)
    arms: list[Arm] = []
    for name in names:
        match name:
            case "mrl" | "mrl_sampled":
                arms.append(Arm(name, "separate", nested))
            case "mrl_e":
                arms.append(Arm("mrl_e", "tied", nested))
            case "ff":
                one_hot = np.eye(len(dims)).tolist()
                arms += [Arm("ff", "separate", tuple(row), m) for m, row in zip(dims, one_hot, strict=True)]
    return tuple(dict.fromkeys(arms))


def posthoc(names: Sequence[str]) -> tuple[str, ...]:
    """The post-hoc arms among `names`. Raises `UserError` when the fixed-size models that they compress are missing."""
    chosen = tuple(name for name in POSTHOC if name in _named(names))
    if chosen and "ff" not in _named(names):
        raise UserError(
            f"arms={list(names)} lacks ff: the full-width fixed-size model is what {', '.join(chosen)} "
            f"compress{'es' if len(chosen) == 1 else ''}; add it"
        )
    return chosen


def untuned(names: Sequence[str]) -> tuple[str, ...]:
    """The untuned arms among `names`."""
    return tuple(name for name in UNTUNED if name in _named(names))


def _named(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        one_of("arms", name, (*NAMES, "all"))
    return FOR_CLASSES if "all" in names else names


def kinds(arms: Sequence[Arm]) -> tuple[str, ...]:
    """The head kinds that a population needs, in a fixed order."""
    return tuple(kind for kind in ("separate", "tied") if any(arm.head == kind for arm in arms))
