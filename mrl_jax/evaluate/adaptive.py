"""A cascade over one arm's own classifiers: calibrated on the validation split, scored on the test split.

Two ways to set the thresholds (see `cascade.py`): `cascade_greedy`, by the rule of the paper on the whole validation
split, and `cascade_certified`, by Learn-then-Test. The latter fits temperatures and the path of thresholds on a quarter
of the validation split and certifies them with the rest, on which they do not depend. If nothing can be certified,
every input is answered at full width.

The model itself is the checkpoint with the best accuracy on the same validation split, averaged over all dims; the
certificate treats it as given. For a strict guarantee, calibrate on examples of your own (`EmbeddingModel.calibrate`).
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.evaluate import cascade
from mrl_jax.system.errors import UserError

MAX_LOGITS_BYTES = 8 << 30  # of the logits of all granularities
FITTING_SHARE = 0.25  # share of the validation split that temperatures and the path are fitted on


def split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split example indices at random into those to fit on and those to certify with."""
    order = np.random.default_rng((seed, count)).permutation(count)
    cut = round(FITTING_SHARE * count)
    return order[:cut], order[cut:]


def check(count: int, epsilon: float, delta: float) -> None:
    """Raise `UserError` if a validation split of `count` examples cannot certify anything."""
    needed = cascade.examples_needed(epsilon, delta)
    total = next(n for n in itertools.count(needed + 1) if 0 < round(FITTING_SHARE * n) <= n - needed)
    if count < total:
        raise UserError(
            f"evaluation.cascade=true: evaluation.epsilon={epsilon} at evaluation.delta={delta} takes {total:,} "
            f"validation examples, {needed:,} of them to certify with and the others to fit on; there are {count:,}. "
            f"Raise data.validation_fraction, data.limit, epsilon or delta"
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


class Calibration(NamedTuple):
    """What K classifiers answer to n held-out examples: all that temperatures and thresholds depend on.

    The first of each two is fitted on every example, for probabilities and the greedy rule. The second is fitted on the
    examples of `split` that are there to fit on, for the certified rule.
    """

    kind: cascade.Kind  # of confidence
    seed: int  # of `split`
    temperatures: np.ndarray  # float64 [2, K]
    confidences: np.ndarray  # [2, K, n]
    right: np.ndarray  # bool [K, n]

    def rules(self, epsilon: float, delta: float) -> dict[str, Rule]:
        """As the function `rules`."""
        greedy = cascade.greedy(self.confidences[0], self.right)
        fitting, certifying = split(self.right.shape[1], self.seed)
        confidences = self.confidences[1]
        path = cascade.path(cascade.greedy(confidences[:, fitting], self.right[:, fitting]))
        certificate = cascade.certify(confidences[:, certifying], self.right[:, certifying], path, epsilon, delta)
        never = np.full(len(self.right) - 1, np.inf)
        on_all, on_fitting = (tuple(map(float, row)) for row in self.temperatures)
        return {
            "greedy": Rule(self.kind, on_all, greedy, False),
            "certified": Rule(
                self.kind, on_fitting, never if certificate is None else certificate.thresholds, certificate is not None
            ),
        }


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
    return calibrate(logits, labels, kind, seed).rules(epsilon, delta)


def calibrate(logits: Iterable[np.ndarray], labels: np.ndarray, kind: cascade.Kind, seed: int) -> Calibration:
    """Fit the temperatures of K classifiers. Arguments as for `rules`; logits from a generator are held one by one."""
    fitting, _ = split(len(labels), seed)
    temperatures, confidences, right = [], [], []
    for logits_nxC in logits:
        both = [cascade.temperature(logits_nxC[rows], labels[rows]) for rows in (slice(None), fitting)]
        temperatures.append(both)
        confidences.append([cascade.confidence(logits_nxC, t, kind) for t in both])
        right.append(logits_nxC.argmax(axis=1) == labels)
    return Calibration(kind, seed, np.array(temperatures).T, np.swapaxes(np.array(confidences), 0, 1), np.array(right))
