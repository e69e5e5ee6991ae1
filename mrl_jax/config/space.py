"""The settings that arms try, `tune.space`: what may be tried, in which range, and the draws."""

import dataclasses
import itertools
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


ROWS = {"optimizer": rows.OPTIMIZER, "loss": rows.LOSS}  # keys that may be in rows, beside rates of dropout

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
    others as they are; only a draw that repeats another is drawn again."""
    space = read(config)
    tried = [tuple((key, configured(config, key)) for key in space)]
    for trial in range(1, config.tune.trials + 1):
        for attempt in itertools.count():  # another draw for one that was tried already, of lists
            word = [config.tune.seed, trial, *([attempt] if attempt else [])]
            shares = {key: np.random.default_rng([*word, *key.encode()]).uniform() for key in space}
            drawn = tuple((key, of.at(float(shares[key]))) for key, of in space.items())
            if drawn not in tried:
                break
        tried.append(drawn)
    return tried


def of_arms(config: Config, population: Sequence[arms.Arm]) -> dict[str, tuple[tuple[str, float], ...]]:
    """By label of each arm, the settings that it has by what it is; see `arms.own_settings`."""
    return arms.own_settings(population, lambda key: configured(config, key))


def giver(config: Config, key: str) -> str | None:
    """What gives another value than the default of `key`, the weight of a loss, say, to any member of a run: the key,
    an arm or the space, as messages name it."""
    section, _, name = key.rpartition(".")
    if (value := configured(config, key)) != getattr(type(getattr(config, section))(), name):
        return f"{key}={as_word(value)}"
    arm = next((name for name in config.arms if key in arms.ARMS[name].settings), None)
    return f"arms={arm}" if arm else f"tune.space: {key}" if key in (config.tune.space or ()) else None


def check(config: Config) -> None:
    """Raise `UserError` for a section `tune` that cannot be followed."""
    if config.tune.trials == 0:
        if config.tune.space is not None:
            raise UserError("tune.space is not allowed with tune.trials=0; set tune.trials, or tune.space=null")
        return
    if config.data.source == "mixture":
        raise UserError("tune.trials is not for data=mixture, whose sources may have settings of their own; a sweep is")
    space = read(config)
    if all(isinstance(of, Choice) for of in space.values()):
        count = math.prod(len(of.ends) for of in space.values())
        listed = all(configured(config, key) in of.ends for key, of in space.items())
        if config.tune.trials > count - listed:
            raise UserError(
                f"tune.trials={config.tune.trials} is not allowed; beside the configured settings tune.space has "
                f"{count - listed}"
            )


def _allowed(config: Config) -> tuple[str, ...]:
    """The keys that may be in a row of this run."""
    loss, encoder = config.loss, config.encoder
    entry = LOSSES[loss.name]
    has_no_effect = {key: key not in entry.options for other in LOSSES.values() for key in other.options}
    has_no_effect |= {
        "optimizer.adaptivity": config.optimizer.name == "sgd",
        "loss.temperature": entry.of_pairs is None or (loss.name == "cosine" and loss.teacher is None),
        "loss.teacher_weight": entry.of_pairs is None or loss.teacher is None,
        "loss.shortlist_temperature": giver(config, "loss.shortlist") is None,
        "encoder.dropout": getattr(encoder, "hidden", None) == (),
        "encoder.attention_dropout": getattr(encoder, "attention", "plain") == "fused",
    }
    rates = () if getattr(encoder, "frozen", False) else ENCODERS[encoder.name].rates
    keys = [f"{section}.{name}" for section, names in (ROWS | {"encoder": tuple(rates)}).items() for name in names]
    return tuple(key for key in keys if not has_no_effect.get(key))


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
        if dataclasses.is_dataclass(getattr(part, name)):
            raise UserError(f"tune.space: {key} is a section; write {key}.KEY: …, with a dot")
        if key in {f"{of}.{one}" for of, names in ROWS.items() for one in names} or (
            section == "encoder" and (name in ENCODERS[config.encoder.name].rates)
        ):
            raise UserError(f"tune.space: {key} has no effect in this run; allowed: {', '.join(allowed)}")
        raise UserError(
            f"tune.space: {key} cannot be tried in one compiled program, which it changes; a sweep tries it: "
            f"--multirun {key}=…,…; allowed: {', '.join(allowed)}"
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
        raise UserError(f"{name}={as_word(value)} is not allowed; {FORMS}")
    low, high = (_number(name, word) for word in words[1:])
    if low >= high:
        raise UserError(f"{name}={value} is not allowed; the lower bound comes first")
    if words[0] == "log" and low <= 0:
        raise UserError(f"{name}={value} is not allowed; a logarithm needs bounds above 0")
    return Range(low, high, words[0] == "log")


def _number(name: str, value: Any) -> float:
    try:
        number = float("nan" if isinstance(value, bool) or value is None else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name}: {str(as_word(value))[:40]} is not allowed; a finite number")
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
