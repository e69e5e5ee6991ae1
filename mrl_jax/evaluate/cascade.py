"""Adaptive classification: a nested classifier answers from a short prefix, and reads on only where it is unsure.

An input leaves at the first granularity whose confidence reaches that granularity's threshold; the last takes the rest.
Thresholds come from the greedy rule of Kusupati et al. (2022, section 4.2.1) or, with a guarantee, from `certify`:
Learn-then-Test (Angelopoulos, Bates, Candès, Jordan & Lei 2021, "Learn then Test", arXiv:2110.01052).

Throughout, K granularities of m_1 < … < m_K dims, n inputs, C classes; NumPy arrays in and out.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax, xlogy
from scipy.stats import beta, binom

Classifier = tuple[np.ndarray, np.ndarray]  # kernel [m, C] and bias [C]
Kind = Literal["max_softmax", "margin", "entropy"]

TEMPERATURE_BOUNDS = (0.05, 20.0)  # bounds of the search for a temperature
NEGLIGIBLE_PROBABILITY = 1e-9  # tail probability that is added to p instead of being computed


class Certificate(NamedTuple):
    """Thresholds with P(accuracy loss relative to full width ≥ epsilon) ≤ delta, over the calibration examples."""

    thresholds: np.ndarray  # [K − 1]
    p: float  # of the last threshold that passed
    loss: float  # on the calibration examples: accuracy at full width minus that of the cascade


class CascadeOutcome(NamedTuple):
    """Accuracy and cost of a cascade on labelled inputs."""

    accuracy: float
    full: float  # accuracy at full width
    dims: float  # mean dims of the granularity that answered
    cumulative_dims: float  # mean sum of the dims of all granularities evaluated; with a tied head equal to `dims`
    flops: float  # mean per input in the heads, two per multiply-add
    shares: np.ndarray  # [K] share of inputs that left at each granularity
    captured: float  # dims saved, as a share of the dims that an oracle saves


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 that minimises the cross-entropy of softmax(logits / T) (Guo et al. 2017).

    Args:
        logits: [n, C].
        labels: int [n]. Without any, T is 1.
    """
    if not len(labels):
        return 1.0
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[rows, labels]))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURE_BOUNDS), method="bounded").x))


def confidence(logits: np.ndarray, temperature: float = 1.0, kind: Kind = "max_softmax") -> np.ndarray:
    """Confidence of softmax(logits / temperature).

    Args:
        logits: [n, C].
        temperature: T > 0.
        kind: `max_softmax`, the largest probability; `margin`, its difference to the second largest; `entropy`, one
            minus the entropy as a share of the maximum entropy.

    Returns:
        [n] in [0, 1], larger is more confident.

    Raises:
        ValueError: `kind` is unknown.
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
    """The granularity at which each input leaves the cascade.

    Args:
        confidences: [K, n].
        thresholds: [K − 1].

    Returns:
        int [n], in 0…K−1.
    """
    confident = confidences[: len(thresholds)] >= np.asarray(thresholds)[:, None]
    return np.where(confident.any(axis=0), confident.argmax(axis=0), len(thresholds))


def greedy(confidences: np.ndarray, right: np.ndarray, levels: int = 100) -> np.ndarray:
    """Choose thresholds greedily, one granularity after the other, from the smallest; without any guarantee.

    Candidates are `levels` quantiles of the confidence of the inputs that have not left yet, and infinity: none leaves.
    The lowest candidate with the highest accuracy is chosen, given that the next granularity answers all other inputs.

    Args:
        confidences: [K, n], on a held-out split.
        right: bool [K, n], whether each granularity's answer is right.
        levels: number of quantiles.

    Returns:
        Thresholds [K − 1].
    """
    left = np.arange(confidences.shape[1])
    thresholds = np.full(len(confidences) - 1, np.inf)
    for k in range(len(thresholds)):
        if not len(left):
            thresholds[k] = -np.inf
            continue
        confidence_k, now, later = confidences[k, left], right[k, left], right[k + 1, left]
        candidates = np.append(np.quantile(confidence_k, np.linspace(0, 1, levels), method="lower"), np.inf)
        accuracy = [np.count_nonzero(np.where(confidence_k >= t, now, later)) for t in candidates]
        thresholds[k] = candidates[int(np.argmax(accuracy))]
        left = left[confidence_k < thresholds[k]]
    return thresholds


def path(thresholds: np.ndarray, steps: int = 200) -> np.ndarray:
    """Candidate thresholds for `certify`, most conservative first.

    They are points on the straight line from all ones (no early exit) through `thresholds`, such as the greedy ones, to
    where one of them is 0.

    Args:
        thresholds: [K − 1].
        steps: number of points.

    Returns:
        [steps, K − 1], or all ones [1, K − 1] if no threshold is below 1.
    """
    slope = 1 - np.clip(thresholds, 0, 1)
    if not (slope > 0).any():
        return np.ones((1, len(slope)))
    reach = np.linspace(0, 1, steps) ** 2 / slope[slope > 0].min()  # dense where few inputs leave early
    return np.asarray(np.maximum(1 - reach[:, None] * slope, 0.0))


def certify(
    confidences: np.ndarray, right: np.ndarray, thresholds: np.ndarray, epsilon: float, delta: float
) -> Certificate | None:
    """The thresholds furthest along a path that are certified to lose at most `epsilon` accuracy.

    Each row of the path is tested for the null hypothesis that its accuracy is `epsilon` or more below full width, at
    level delta; the first that is not rejected ends the search. Fixed-sequence testing needs no further correction:
    whichever true null hypothesis comes first is rejected with probability at most delta, so P(accuracy loss of the
    returned thresholds ≥ epsilon) ≤ delta over the draw of the examples. The guarantee requires that the path and the
    temperatures do not depend on these examples: fit them on others.

    Args:
        confidences: [K, n], of calibration examples only.
        right: bool [K, n], whether each granularity's answer is right.
        thresholds: the path [steps, K − 1], most conservative first.
        epsilon: accuracy that may be lost, as a share.
        delta: probability with which more may be lost.

    Returns:
        The certified thresholds, or None if not even the first ones that let an input leave early are certified.

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
            best = Certificate(row, p, (worse - better) / n)
    return best


def examples_needed(epsilon: float, delta: float) -> int:
    """The smallest number of calibration examples that can certify, which they do if the cascade loses none of them."""
    few, many = 0, 1
    while p_value(0, 0, many, epsilon) > delta:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if p_value(0, 0, middle, epsilon) > delta else (few, middle)
    return many


@functools.lru_cache(maxsize=1024)  # many points of a path have the same counts
def p_value(worse: int, better: int, n: int, epsilon: float) -> float:
    """p-value of the null hypothesis P(worse) − P(better) ≥ epsilon, from counts over n independent inputs.

    The rate of disagreement s = P(worse) + P(better) is a nuisance parameter. Given s, the distribution of
    worse − better is known exactly: a binomial number of disagreements, each for the worse with probability
    (s + epsilon) / 2s. Its lower tail is maximised over a confidence set of s, whose error is added (Berger & Boos
    1994). The p-value is valid for every n, and much smaller than bounds that use only the range −1…1 of a difference,
    since most inputs agree.
    """
    error = 1e-3  # of the confidence set
    differ = worse + better
    low = float(beta.ppf(error / 2, differ, n - differ + 1)) if differ else 0.0
    high = float(beta.ppf(1 - error / 2, differ + 1, n - differ)) if differ < n else 1.0
    low, high = max(low, epsilon), max(high, epsilon)  # s is at least epsilon where the hypothesis is true
    # Only numbers of disagreements with a probability that matters; that of the others is added at the end.
    few, many = binom.ppf(NEGLIGIBLE_PROBABILITY, n, low), binom.isf(NEGLIGIBLE_PROBABILITY, n, high)
    counts = np.arange(max(0, few), min(n, many) + 1)
    max_worse = np.floor((counts + worse - better) / 2)  # worse − better ≤ its observed value, given this many in all
    tails = [
        float(np.sum(binom.pmf(counts, n, s) * binom.cdf(max_worse, counts, (s + epsilon) / (2 * s))))
        for s in np.linspace(low, high, 20)
    ]
    return min(1.0, max(tails) + error + 2 * NEGLIGIBLE_PROBABILITY)


def serve(
    z: np.ndarray,
    classifiers: Sequence[Classifier],
    temperatures: Sequence[float],
    thresholds: np.ndarray,
    kind: Kind,
    tied: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Classify embeddings with a cascade, evaluating each granularity only on the inputs that have not left.

    Args:
        z: embeddings float [n, D].
        classifiers: K kernels [m_k, C] with their biases [C], by ascending m_k.
        temperatures: K.
        thresholds: [K − 1].
        kind: the confidence measure that the thresholds were set for.
        tied: whether the kernels are prefixes of one (MRL-E). Each granularity then only adds its block of coordinates
            to the logits so far, so nothing is computed twice.

    Returns:
        The predicted class, int [n], and the granularity 0…K−1 that predicted it, int [n].
    """
    logits, granularity = exits(z, classifiers, temperatures, thresholds, kind, tied)
    return logits.argmax(axis=1), granularity


def exits(
    z: np.ndarray,
    classifiers: Sequence[Classifier],
    temperatures: Sequence[float],
    thresholds: np.ndarray,
    kind: Kind,
    tied: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """As `serve`, but with all logits [n, C] of the granularity that answered instead of its answer."""
    granularity = np.zeros(len(z), np.int64)
    answered = np.zeros((len(z), classifiers[0][0].shape[1]), np.result_type(z, classifiers[0][0]))
    left, logits, start = np.arange(len(z)), np.zeros_like(answered), 0
    for k, (kernel, bias) in enumerate(classifiers):
        m = len(kernel)
        if tied:
            logits = logits + z[left, start:m] @ kernel[start:]
            logits_k = logits + bias
        else:
            logits_k = z[left, :m] @ kernel + bias
        last = k == len(classifiers) - 1
        leaves = np.full(len(left), True) if last else confidence(logits_k, temperatures[k], kind) >= thresholds[k]
        answered[left[leaves]], granularity[left[leaves]] = logits_k[leaves], k
        left, logits, start = left[~leaves], logits[~leaves], m
        if not len(left):
            break
    return answered, granularity


def outcome_of_exits(
    granularity: np.ndarray, right: np.ndarray, dims: Sequence[int], classes: int, tied: bool
) -> CascadeOutcome:
    """Accuracy and cost of a cascade, given the granularity at which each input leaves.

    Args:
        granularity: int [n] in 0…K−1, as from `leaving` or `serve`.
        right: bool [K, n], whether each granularity's answer is right.
        dims: the K prefix lengths, ascending.
        classes: C.
        tied: as for `serve`.
    """
    sizes = np.asarray(dims)
    evaluated = sizes if tied else np.cumsum(sizes)  # dims read by all granularities up to each
    first_right = np.where(right.any(axis=0), right.argmax(axis=0), 0)
    spent, least = float(sizes[granularity].mean()), float(sizes[first_right].mean())
    return CascadeOutcome(
        accuracy=float(right[granularity, np.arange(len(granularity))].mean()),
        full=float(right[-1].mean()),
        dims=spent,
        cumulative_dims=float(evaluated[granularity].mean()),
        flops=2.0 * classes * float(evaluated[granularity].mean()),
        shares=np.bincount(granularity, minlength=len(sizes)) / len(granularity),
        captured=(sizes[-1] - spent) / (sizes[-1] - least) if sizes[-1] > least else 1.0,
    )
