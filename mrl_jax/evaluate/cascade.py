"""Adaptive classification: a nested classifier answers from a short prefix, and reads on only where it is unsure.

An input leaves at the first granularity whose confidence reaches that granularity's threshold; the last takes the rest.
Thresholds come from the greedy rule of Kusupati et al. (2022, section 4.2.1) or, with a guarantee, from `certify`:
Learn-then-Test (Angelopoulos, Bates, Candès, Jordan & Lei 2021, "Learn then Test", arXiv:2110.01052).

Throughout, K granularities of m_1 < … < m_K dims, n inputs, C classes; NumPy arrays in and out.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax, xlogy
from scipy.stats import beta, binom

Classifier = tuple[np.ndarray, np.ndarray]  # kernel [m, C] and bias [C]
Kind = Literal["max_softmax", "margin", "entropy"]

TEMPERATURES = (0.05, 20.0)  # bounds of the search
RARE = 1e-9  # probability that is counted in full instead of being worked out


class Certified(NamedTuple):
    """Thresholds for which P(accuracy loss against full width ≥ epsilon) ≤ delta, over the calibration examples."""

    thresholds: np.ndarray  # [K − 1]
    p: float  # of the last threshold that passed
    loss: float  # on the calibration examples: accuracy at full width minus that of the cascade


class Served(NamedTuple):
    """What a cascade does to labelled inputs."""

    accuracy: float
    full: float  # accuracy at full width
    dims: float  # mean dims of the granularity that answered
    cumulative_dims: (
        float  # mean sum of the dims of all granularities that were asked; with a tied head equal to `dims`
    )
    flops: float  # mean multiply-adds of the heads, two operations each
    shares: np.ndarray  # [K] share of inputs that left at each granularity
    captured: float  # share of the dims that an oracle saves which the cascade saves too


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 that minimises the cross-entropy of softmax(logits / T) (Guo et al. 2017).

    Args:
        logits: [n, C]; labels: int [n].
    """
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[rows, labels]))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def confidence(logits: np.ndarray, temperature: float = 1.0, kind: Kind = "max_softmax") -> np.ndarray:
    """How sure softmax(logits / temperature) is, [n] in [0, 1] of logits [n, C]: larger is surer.

    `max_softmax` is the largest probability, `margin` its lead over the second, `entropy` one minus the entropy as a
    share of the greatest possible.
    """
    p = softmax(logits / temperature, axis=1)
    if kind == "max_softmax":
        return np.asarray(p.max(axis=1))
    if kind == "margin":
        top = np.partition(p, -2, axis=1)[:, -2:] if p.shape[1] > 1 else np.pad(p, ((0, 0), (1, 0)))
        return np.asarray(top[:, 1] - top[:, 0])
    if kind == "entropy":
        return np.asarray(1 + xlogy(p, p).sum(axis=1) / np.log(max(2, p.shape[1])))
    raise ValueError(f"kind={kind!r} is unknown; allowed: max_softmax, margin, entropy")


def leaving(confidences: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The granularity 0…K−1 at which each input leaves, int [n]: confidences [K, n], thresholds [K − 1]."""
    sure = confidences[: len(thresholds)] >= np.asarray(thresholds)[:, None]
    return np.where(sure.any(axis=0), sure.argmax(axis=0), len(thresholds))


def greedy(confidences: np.ndarray, right: np.ndarray, levels: int = 100) -> np.ndarray:
    """Thresholds [K − 1] granularity by granularity, from the smallest: of `levels` quantiles of the confidence of the
    inputs that are left, and of never leaving, the lowest with which these and those answered by the next granularity
    are right most often. Confidences and right (bool) are [K, n] on a held-out split. Nothing is guaranteed.
    """
    left = np.arange(confidences.shape[1])
    thresholds = np.full(len(confidences) - 1, np.inf)
    for k in range(len(thresholds)):
        if not len(left):
            thresholds[k] = -np.inf
            continue
        sure, now, later = confidences[k, left], right[k, left], right[k + 1, left]
        candidates = np.append(np.quantile(sure, np.linspace(0, 1, levels), method="lower"), np.inf)
        accuracy = [np.count_nonzero(np.where(sure >= t, now, later)) for t in candidates]
        thresholds[k] = candidates[int(np.argmax(accuracy))]
        left = left[sure < thresholds[k]]
    return thresholds


def path(thresholds: np.ndarray, steps: int = 200) -> np.ndarray:
    """Thresholds [steps, K − 1] from the dearest to the cheapest, for `certify`: the straight line from 1 (nobody
    leaves early) through `thresholds`, such as the greedy ones, on until one of them is 0."""
    slope = 1 - np.clip(thresholds, 0, 1)
    if not (slope > 0).any():
        return np.ones((1, len(slope)))
    reach = np.linspace(0, 1, steps) ** 2 / slope[slope > 0].min()  # dense where few leave
    return np.asarray(np.maximum(1 - reach[:, None] * slope, 0.0))


def certify(
    confidences: np.ndarray, right: np.ndarray, thresholds: np.ndarray, epsilon: float, delta: float
) -> Certified | None:
    """The cheapest thresholds of a path that are certified to lose at most `epsilon` accuracy.

    Each row of the path is tested for the null hypothesis that its accuracy is `epsilon` or more below full width, at
    level delta; the first that is not rejected ends the search. Fixed-sequence testing needs no further correction:
    whichever true null hypothesis comes first is rejected with probability at most delta, so P(accuracy loss of the
    returned thresholds ≥ epsilon) ≤ delta over the draw of the examples. The guarantee needs a path, and temperatures,
    that do not depend on these examples: take them from other ones.

    Args:
        confidences: [K, n]; right: bool [K, n], whether each granularity's answer is right. Calibration examples only.
        thresholds: the path [steps, K − 1], dearest first.
        epsilon: accuracy that may be lost, as a share; delta: probability with which more may be lost.

    Returns:
        None where not even the first thresholds that let an input leave early are certified.

    Raises:
        ValueError: epsilon or delta not in (0, 1); too few examples to certify anything.
    """
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} is not allowed; between 0 and 1")
    n = right.shape[1]
    if p_value(0, 0, n, epsilon) > delta:
        raise ValueError(
            f"{n} calibration examples cannot certify epsilon={epsilon} at delta={delta}, not even without a single "
            f"loss; at least {examples_needed(epsilon, delta)} are needed"
        )
    best = None
    for row in thresholds:
        granularity = leaving(confidences, row)
        answer = right[granularity, np.arange(n)]
        worse, better = (int(np.count_nonzero(x)) for x in (right[-1] & ~answer, answer & ~right[-1]))
        p = p_value(worse, better, n, epsilon)
        if p > delta:
            break
        if (granularity < len(row)).any():
            best = Certified(row, p, (worse - better) / n)
    return best


def examples_needed(epsilon: float, delta: float) -> int:
    """The least number of calibration examples that certify when none of them is lost."""
    few, many = 0, 1
    while p_value(0, 0, many, epsilon) > delta:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if p_value(0, 0, middle, epsilon) > delta else (few, middle)
    return many


def p_value(worse: int, better: int, n: int, epsilon: float) -> float:
    """For the null hypothesis P(worse) − P(better) ≥ epsilon, from the counts of n independent inputs.

    Inputs on which both agree say how often the two differ at all, which is a nuisance s = P(worse) + P(better). The
    difference worse − better has, given s, an exact distribution (a binomial number of disagreements, each of either
    sign with a known probability); its lower tail is maximised over a confidence set of s, whose error is added (Berger
    & Boos 1994). Exact, and much stronger than bounds that only know the range −1…1, since most inputs agree.
    """
    error = 1e-3  # of the confidence set
    differ = worse + better
    low = float(beta.ppf(error / 2, differ, n - differ + 1)) if differ else 0.0
    high = float(beta.ppf(1 - error / 2, differ + 1, n - differ)) if differ < n else 1.0
    low, high = max(low, epsilon), max(high, epsilon)  # s is at least epsilon where the hypothesis is true
    # Numbers of disagreements with any probability to speak of; what the others have is added too.
    few, many = binom.ppf(RARE, n, low), binom.isf(RARE, n, high)
    counts = np.arange(max(0, few), min(n, many) + 1)
    most = np.floor((counts + worse - better) / 2)  # worse − better ≤ what was seen, among this many disagreements
    tails = [
        float(np.sum(binom.pmf(counts, n, s) * binom.cdf(most, counts, (s + epsilon) / (2 * s))))
        for s in np.linspace(low, high, 20)
    ]
    return min(1.0, max(tails) + error + 2 * RARE)


def serve(
    z: np.ndarray,
    classifiers: Sequence[Classifier],
    temperatures: Sequence[float],
    thresholds: np.ndarray,
    kind: Kind,
    tied: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Classify embeddings with a cascade, computing no more than it needs.

    Args:
        z: float [n, D]; classifiers: K kernels [m_k, C] with their biases, ascending m_k.
        kind: the confidence that the thresholds were made for.
        tied: the kernels are prefixes of one (MRL-E): each granularity then only adds its block of coordinates to the
            logits so far, so nothing is computed twice.

    Returns:
        predicted class int [n], and the granularity 0…K−1 that gave it, int [n].
    """
    predicted, granularity = np.zeros(len(z), np.int64), np.zeros(len(z), np.int64)
    left, logits, start = np.arange(len(z)), np.zeros((len(z), classifiers[0][0].shape[1]), np.float32), 0
    for k, (kernel, bias) in enumerate(classifiers):
        m = len(kernel)
        if tied:
            logits = logits + z[left, start:m] @ kernel[start:]
            read = logits + bias
        else:
            read = z[left, :m] @ kernel + bias
        last = k == len(classifiers) - 1
        sure = np.full(len(left), True) if last else confidence(read, temperatures[k], kind) >= thresholds[k]
        predicted[left[sure]], granularity[left[sure]] = read[sure].argmax(axis=1), k
        left, logits, start = left[~sure], logits[~sure], m
        if not len(left):
            break
    return predicted, granularity


def served(granularity: np.ndarray, right: np.ndarray, dims: Sequence[int], classes: int, tied: bool) -> Served:
    """Figures of a cascade in which input i is answered by `granularity` [n]; right bool [K, n] as for `certify`."""
    sizes = np.asarray(dims)
    asked = sizes if tied else np.cumsum(sizes)
    first_right = np.where(right.any(axis=0), right.argmax(axis=0), 0)
    spent, least = float(sizes[granularity].mean()), float(sizes[first_right].mean())
    return Served(
        accuracy=float(right[granularity, np.arange(len(granularity))].mean()),
        full=float(right[-1].mean()),
        dims=spent,
        cumulative_dims=float(asked[granularity].mean()),
        flops=2.0 * classes * float(asked[granularity].mean()),
        shares=np.bincount(granularity, minlength=len(sizes)) / len(granularity),
        captured=(sizes[-1] - spent) / (sizes[-1] - least) if sizes[-1] > least else 1.0,
    )
