"""The settings that arms try, `tune.space`: what may be tried, in which range, and the draws."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrl_jax import arms, rows
from mrl_jax.config.build import as_word
from mrl_jax.config.schema import Config
from mrl_jax.encoders import ENCODERS
from mrl_jax.losses import LOSSES
from mrl_jax.system.errors import UserError, nearest

TENFOLD = 10.0  # without a space, learning rates from a tenth of the configured one to ten times as much
FORMS = "[1e-3,1e-2], values to choose from; {a} or {b}, drawn from a range evenly, or evenly in its logarithm".format(
    a="'uniform 0 0.5'", b="'log 1e-4 3e-2'"
)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool

    def at(self, share: float) -> float:
        """The number below which lies a `share` of the draws."""
        if not self.log:
            return self.low + share * (self.high - self.low)
        return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))

    @property
    def ends(self) -> tuple[float, ...]:
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of some numbers, each as likely."""

    values: tuple[float, ...]

    def at(self, share: float) -> float:
        """The number below which lies a `share` of the draws."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    @property
    def ends(self) -> tuple[float, ...]:
        return self.values


Space = dict[str, Range | Choice]


def read(config: Config) -> Space:
    """`tune.space`, checked; where it is null, the learning rate around the configured one. Raises `UserError`."""
    if config.tune.space is None:
        rate = config.optimizer.learning_rate
        return {"optimizer.learning_rate": Range(rate / TENFOLD, rate * TENFOLD, log=True)}
    if not config.tune.space:
        raise UserError("tune.space={} is empty; write {optimizer.learning_rate: log 1e-4 3e-2}, or null for that key")
    space = {}
    for key, value in config.tune.space.items():
        _check_key(config, key)
        space[key] = _read_values(key, value)
        for end in space[key].ends:
            _check_value(config, key, end)
    return space


def draws(config: Config) -> list[tuple[tuple[str, float], ...]]:
    """The settings that every arm tries: those of the configuration first, then `tune.trials` that are drawn.

    The draw of a trial depends on `tune.seed`, its number and the key alone, so more trials, or another key, leave the
    others as they are."""
    space = read(config)
    own = tuple((key, configured(config, key)) for key in space)
    drawn = [
        tuple(
            (key, of.at(float(np.random.default_rng([config.tune.seed, trial, *key.encode()]).uniform())))
            for key, of in space.items()
        )
        for trial in range(1, config.tune.trials + 1)
    ]
    return [own, *drawn]


def check(config: Config) -> None:
    """Raise `UserError` for a section `tune` that cannot be followed."""
    if config.tune.trials == 0:
        if config.tune.space is not None:
            raise UserError("tune.space is not allowed with tune.trials=0; say how many settings each arm tries")
        return
    if config.data.source == "mixture":
        raise UserError("tune.trials is not for data=mixture, whose sources may have settings of their own; a sweep is")
    read(config)


def _allowed(config: Config) -> tuple[str, ...]:
    """The keys that may be in a row of this run."""
    loss, encoder = config.loss, config.encoder
    entry = LOSSES[loss.name]
    is_without_effect = {
        "optimizer.adaptivity": config.optimizer.name == "sgd",
        "loss.temperature": entry.of_pairs is None or (loss.name == "cosine" and loss.teacher is None),
        "loss.teacher_weight": loss.teacher is None,
        "loss.shortlist_temperature": loss.shortlist == 0,
        "encoder.attention_dropout": getattr(encoder, "attention", "plain") == "fused",
    }
    is_without_effect |= {key: key not in entry.options for other in LOSSES.values() for key in other.options}
    rates = () if getattr(encoder, "frozen", False) else ENCODERS[encoder.name].rates
    keys = [f"optimizer.{name}" for name in rows.OPTIMIZER] + [f"loss.{name}" for name in rows.LOSS]
    keys += [f"encoder.{name}" for name in rates]
    return tuple(key for key in keys if not is_without_effect.get(key))


def _check_key(config: Config, key: str) -> None:
    allowed = _allowed(config)
    for arm in config.arms:
        if key in arms.ARMS[arm].settings:
            raise UserError(f"tune.space: {key} is what makes arm {arm}; leave out one of them")
    if key in allowed:
        return
    section, _, name = key.rpartition(".")
    part = getattr(config, section, None) if section else config
    if dataclasses.is_dataclass(part) and name in {item.name for item in dataclasses.fields(part)}:
        raise UserError(
            f"tune.space: {key} cannot be tried in one compiled program, whose shapes or parts it changes, or has no "
            f"effect in this run; a sweep tries it: --multirun {key}=…,…; allowed: {', '.join(allowed)}"
        )
    raise UserError(f"tune.space: {key} is unknown{nearest(key, allowed)}; allowed: {', '.join(allowed)}")


def _read_values(key: str, value: Any) -> Range | Choice:
    """What a key may be: a list of numbers, or `uniform` or `log` with two bounds."""
    name = f"tune.space: {key}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = [_number(name, item) for item in value]
        if len({*numbers}) < max(len(numbers), 2):
            raise UserError(f"{name}={list(value)} is not allowed; two different numbers at least, each once")
        return Choice(tuple(numbers))
    words = value.split() if isinstance(value, str) else []
    if len(words) != 3 or words[0] not in ("uniform", "log"):
        raise UserError(f"{name}={value} is not allowed; {FORMS}")
    low, high = (_number(name, word) for word in words[1:])
    if low >= high:
        raise UserError(f"{name}={value} is not allowed; the lower bound comes first")
    if words[0] == "log" and low <= 0:
        raise UserError(f"{name}={value} is not allowed; a logarithm needs bounds above 0")
    return Range(low, high, words[0] == "log")


def _number(name: str, value: Any) -> float:
    try:
        number = float("nan" if isinstance(value, bool) or value is None else value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name}: {as_word(value)} is not allowed; a finite number")
    return number


def _check_value(config: Config, key: str, value: float) -> None:
    """Raise `UserError` for a value that the key cannot have by itself."""
    section, _, name = key.partition(".")
    item = next(item for item in dataclasses.fields(getattr(config, section)) if item.name == name)
    metadata: Mapping[str, Any] = item.metadata
    if section == "encoder" and not metadata:
        metadata = {"allowed": "0 ≤ value < 1", "test": lambda rate: 0 <= rate < 1}
    if "test" in metadata and not metadata["test"](value):
        raise UserError(f"tune.space: {key} cannot be {as_word(value)}; {metadata['allowed']}")


def configured(config: Config, key: str) -> float:
    """The value that the configuration has. No clipping is a bound that no gradient reaches."""
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    return math.inf if value is None else float(value)
