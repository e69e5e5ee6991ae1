"""An arm of a comparison is a row of loss weights.

With K nesting dims and both kinds of heads a row has 2K entries, K for the separate heads and K for the tied one:

    mrl    (1 … 1 | 0 … 0)      a head a granularity
    mrl_e  (0 … 0 | 1 … 1)      one tied head
    ff(k)  (0 … 1 … 0 | 0 … 0)  the independently trained fixed-size model of width m_k

Everything else (data order, initial parameters, dropout, optimiser, compiled step) is the same for the arms of a seed,
so their differences are paired by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrl_jax.errors import one_of

NAMES = ("mrl", "mrl_e", "ff")


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

    def row(self, kinds: Sequence[str]) -> np.ndarray:
        """The loss weights [len(kinds), K] in a program that holds the head kinds `kinds`."""
        return np.stack([np.asarray(self.weights, np.float32) * (kind == self.head) for kind in kinds])


@dataclass(frozen=True)
class Member:
    """One member of a population: an arm trained from one seed."""

    arm: Arm
    seed: int

    @property
    def label(self) -> str:
        return f"{self.arm.label}-seed{self.seed}"


def expand(names: Sequence[str], dims: Sequence[int], weights: Sequence[float] | None = None) -> tuple[Arm, ...]:
    """The arms called `names`; `ff` stands for one fixed-size arm at each nesting dim, `all` for every name.

    `weights` [K] is the relative importance of the granularities in the nested arms (ones by default).
    """
    for name in names:
        one_of("arms", name, (*NAMES, "all"))
    if "all" in names:
        names = NAMES
    nested = tuple(float(c) for c in weights) if weights is not None else (1.0,) * len(dims)
    arms: list[Arm] = []
    for name in names:
        match name:
            case "mrl":
                arms.append(Arm("mrl", "separate", nested))
            case "mrl_e":
                arms.append(Arm("mrl_e", "tied", nested))
            case "ff":
                one_hot = np.eye(len(dims)).tolist()
                arms += [Arm("ff", "separate", tuple(row), m) for m, row in zip(dims, one_hot, strict=True)]
    return tuple(dict.fromkeys(arms))


def kinds(arms: Sequence[Arm]) -> tuple[str, ...]:
    """The head kinds that a population needs, in a fixed order."""
    return tuple(kind for kind in ("separate", "tied") if any(arm.head == kind for arm in arms))
