"""A cascade over one arm's own classifiers: calibrated on the validation split, scored on the test split.

Two ways to set the thresholds (see `cascade.py`): `cascade_greedy`, by the rule of the paper on the whole validation
split, and `cascade_certified`, by Learn-then-Test. A quarter of the validation split then gives the temperatures and
the path of thresholds, and the rest, which these do not depend on, certifies them. Where nothing can be certified
the answer is that of full width.

The model itself was kept at the moment of training that was best on the same validation split, at all dims together;
the certificate treats it as given. To be strict, calibrate on examples of your own with `cascade.certify`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.errors import UserError
from mrl_jax.evaluate import cascade

MOST = 8 << 30  # bytes of logits
FITTED = 0.25  # share of the validation split that temperatures and the path are fitted on


def split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the examples to fit on and of those to certify with, drawn anew for each seed."""
    order = np.random.default_rng((seed, count)).permutation(count)
    cut = round(FITTED * count)
    return order[:cut], order[cut:]


def check(count: int, epsilon: float, delta: float) -> None:
    """Raises UserError where a validation split of `count` examples cannot certify anything."""
    certifying = count - round(FITTED * count)
    needed = cascade.examples_needed(epsilon, delta)
    if certifying < needed or certifying == count:
        raise UserError(
            f"evaluation.cascade=true: evaluation.epsilon={epsilon} at evaluation.delta={delta} takes {needed:,} "
            f"validation examples to certify and a third as many to fit on; there are {count:,}. Raise "
            f"data.validation_fraction, epsilon or delta"
        )


def check_memory(examples: int, classes: int, granularities: int) -> None:
    """Raises UserError where the logits of `examples`, at every granularity, are too many to hold."""
    needed = 4 * examples * classes * granularities
    if needed > MOST:
        raise UserError(
            f"evaluation.cascade=true: the logits of {examples:,} validation and test examples for {classes:,} classes "
            f"at {granularities} dims take {needed / 2**30:,.0f} GiB; use fewer nesting_dims or examples, or calibrate "
            f"a trained model on a sample of your own with mrl_jax.evaluate.cascade"
        )


class Rule(NamedTuple):
    """What one rule makes of K granularities; `certified` says whether it carries the guarantee."""

    kind: cascade.Kind  # of confidence, which the thresholds are set on
    temperatures: tuple[float, ...]  # K
    thresholds: np.ndarray  # [K − 1]
    certified: bool


def rules(
    logits: Sequence[np.ndarray], labels: np.ndarray, epsilon: float, delta: float, kind: cascade.Kind, seed: int
) -> dict[str, Rule]:
    """`greedy` and `certified` from K logits [n, C] of held-out examples and their labels int [n]."""
    temperatures, confidences, right = read(logits, labels, kind, np.arange(len(labels)))
    made = {"greedy": Rule(kind, temperatures, cascade.greedy(confidences, right), False)}
    fitting, certifying = split(len(labels), seed)
    temperatures, confidences, right = read(logits, labels, kind, fitting)
    path = cascade.path(cascade.greedy(confidences[:, fitting], right[:, fitting]))
    found = cascade.certify(confidences[:, certifying], right[:, certifying], path, epsilon, delta)
    never = np.full(len(logits) - 1, np.inf)
    made["certified"] = Rule(kind, temperatures, never if found is None else found.thresholds, found is not None)
    return made


def read(
    logits: Sequence[np.ndarray], labels: np.ndarray, kind: cascade.Kind, fitting: np.ndarray
) -> tuple[tuple[float, ...], np.ndarray, np.ndarray]:
    """Temperatures fitted on the rows `fitting`; for every row confidences and whether it is right, both [K, n]."""
    temperatures = tuple(cascade.temperature(one[fitting], labels[fitting]) for one in logits)
    confidences = np.stack([cascade.confidence(x, t, kind) for x, t in zip(logits, temperatures, strict=True)])
    return temperatures, confidences, np.stack([x.argmax(axis=1) == labels for x in logits])
