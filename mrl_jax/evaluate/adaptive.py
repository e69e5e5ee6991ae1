"""A cascade over one arm's own classifiers: calibrated on the validation split, scored on the test split.

Two ways to set the thresholds (see `cascade.py`): `cascade_greedy`, by the rule of the paper on the whole validation
split, and `cascade_certified`, by Learn-then-Test. The latter fits temperatures and the path of thresholds on a quarter
of the validation split and certifies them with the rest, on which they do not depend. If nothing can be certified,
every input is answered at full width.

The model itself is the checkpoint with the best accuracy on the same validation split, averaged over all dims; the
certificate treats it as given. For a strict guarantee, calibrate on examples of your own with `cascade.certify`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.errors import UserError
from mrl_jax.evaluate import cascade

MAX_LOGITS_BYTES = 8 << 30  # of the logits of all granularities
FITTING_SHARE = 0.25  # share of the validation split that temperatures and the path are fitted on


def split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split example indices at random into those to fit on and those to certify with."""
    order = np.random.default_rng((seed, count)).permutation(count)
    cut = round(FITTING_SHARE * count)
    return order[:cut], order[cut:]


def check(count: int, epsilon: float, delta: float) -> None:
    """Raise `UserError` if a validation split of `count` examples cannot certify anything."""
    certifying = count - round(FITTING_SHARE * count)
    needed = cascade.examples_needed(epsilon, delta)
    if certifying < needed or certifying == count:
        raise UserError(
            f"evaluation.cascade=true: evaluation.epsilon={epsilon} at evaluation.delta={delta} takes {needed:,} "
            f"validation examples to certify and a third as many to fit on; there are {count:,}. Raise "
            f"data.validation_fraction, epsilon or delta"
        )


def check_memory(examples: int, classes: int, granularities: int) -> None:
    """Raise `UserError` if the logits of `examples`, at every granularity, do not fit in `MAX_LOGITS_BYTES`."""
    needed = 4 * examples * classes * granularities
    if needed > MAX_LOGITS_BYTES:
        raise UserError(
            f"evaluation.cascade=true: the logits of {examples:,} validation and test examples for {classes:,} classes "
            f"at {granularities} dims take {needed / 2**30:,.0f} GiB; use fewer nesting_dims or examples, or calibrate "
            f"a trained model on a sample of your own with mrl_jax.evaluate.cascade"
        )


class Rule(NamedTuple):
    """Temperatures and thresholds for K granularities; `certified` says whether they carry the guarantee."""

    kind: cascade.Kind  # of confidence, which the thresholds apply to
    temperatures: tuple[float, ...]  # K of them
    thresholds: np.ndarray  # [K − 1]
    certified: bool


def rules(
    logits: Sequence[np.ndarray], labels: np.ndarray, epsilon: float, delta: float, kind: cascade.Kind, seed: int
) -> dict[str, Rule]:
    """Set the thresholds of a cascade by each rule.

    Args:
        logits: K arrays [n, C], of held-out examples.
        labels: int [n].
        epsilon, delta: as for `cascade.certify`.
        kind: measure of confidence.
        seed: of `split`.

    Returns:
        The rules `greedy` and `certified`, by name.
    """
    temperatures, confidences, right = calibrate(logits, labels, kind, np.arange(len(labels)))
    greedy = Rule(kind, temperatures, cascade.greedy(confidences, right), False)
    fitting, certifying = split(len(labels), seed)
    temperatures, confidences, right = calibrate(logits, labels, kind, fitting)
    path = cascade.path(cascade.greedy(confidences[:, fitting], right[:, fitting]))
    certificate = cascade.certify(confidences[:, certifying], right[:, certifying], path, epsilon, delta)
    never = np.full(len(logits) - 1, np.inf)
    thresholds = never if certificate is None else certificate.thresholds
    return {"greedy": greedy, "certified": Rule(kind, temperatures, thresholds, certificate is not None)}


def calibrate(
    logits: Sequence[np.ndarray], labels: np.ndarray, kind: cascade.Kind, fitting: np.ndarray
) -> tuple[tuple[float, ...], np.ndarray, np.ndarray]:
    """Fit the temperatures of K logits [n, C] on the rows `fitting`, and apply them to every row.

    Returns:
        The K temperatures; the confidences, float [K, n]; whether each answer is right, bool [K, n].
    """
    temperatures = tuple(cascade.temperature(x[fitting], labels[fitting]) for x in logits)
    confidences = np.stack([cascade.confidence(x, t, kind) for x, t in zip(logits, temperatures, strict=True)])
    return temperatures, confidences, np.stack([x.argmax(axis=1) == labels for x in logits])
