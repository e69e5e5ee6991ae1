"""Answer with the first result, or say that there is no answer: the score from which on answers may be trusted.

A question is answered where the score of its first result reaches a threshold. Of the questions that are answered, at
most a share `wrong` gets a wrong answer; a question to which no document is the answer, and that is answered all the
same, counts as wrong. With a threshold that was fixed before, right and wrong answers are independent draws, so the
hypothesis that the share is larger is tested by the exact binomial tail of the answered questions. Thresholds are
learnt on one half of the held-out questions, as quantiles of their scores; from the one that looks safest there, they
are tested downwards on the other half, each at level delta, until one fails: testing in a fixed sequence needs no
correction (Angelopoulos, Bates, Candès, Jordan & Lei, 2021, "Learn then test", arXiv:2110.01052). So P(the share of
wrong answers is larger than `wrong`) ≤ delta, over the draw of the held-out questions.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import binom

LEVELS = 50  # thresholds to try: so many shares of the questions are answered


class Threshold(NamedTuple):
    """From which score on to answer, and what happened to the questions that it was tested on."""

    score: float  # of the first result: inf where no threshold is certified, −inf where every question is answered
    answered: float  # share of the questions
    wrong: float  # share of wrong answers among those; nan where none is answered
    p: float  # of the share of wrong answers being larger than it may be


def certify(
    scores: np.ndarray, right: np.ndarray, wrong: float = 0.05, delta: float = 0.05, seed: int = 0
) -> Threshold:
    """The lowest threshold whose answers are shown to be wrong at most as often as they may be.

    Args:
        scores: float [Q], of the first result of each held-out question.
        right: bool [Q], whether that result answers it.
        wrong: the share of wrong answers that is allowed, in (0, 1).
        delta: probability with which it may be exceeded, in (0, 1).
        seed: of the halves.

    Returns:
        The `Threshold`, with the shares on the half that it was tested on.

    Raises:
        ValueError: shapes that do not match, scores that are not finite, or shares outside (0, 1).
    """
    scores, right = np.asarray(scores, np.float64), np.asarray(right, bool)
    if scores.ndim != 1 or scores.shape != right.shape or not np.isfinite(scores).all():
        raise ValueError(f"scores {list(scores.shape)} and right {list(right.shape)}: one finite score per question")
    for name, value in (("wrong", wrong), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} is not allowed; it must be between 0 and 1")
    order = np.random.default_rng(seed).permutation(len(scores))
    learn, test = order[: len(order) // 2], order[len(order) // 2 :]
    none = Threshold(np.inf, 0.0, np.nan, 1.0)
    if not len(learn):
        return none
    shares = np.arange(1, LEVELS + 1) / LEVELS
    levels = np.unique(np.quantile(scores[learn], 1 - shares))[::-1]  # from few answers to all
    levels[-1] = -np.inf
    safest = int(np.argmin([_p_value(scores[learn], right[learn], level, wrong) for level in levels]))
    best = none
    for level in levels[safest:]:
        p = _p_value(scores[test], right[test], level, wrong)
        if p > delta:
            break
        kept = scores[test] >= level
        best = Threshold(float(level), float(kept.mean()), float(1 - right[test][kept].mean()), p)
    return best


def _p_value(scores: np.ndarray, right: np.ndarray, level: float, wrong: float) -> float:
    """Of the hypothesis that answers from this score on are wrong more often than `wrong`."""
    answered = scores >= level
    return float(binom.cdf(np.count_nonzero(answered & ~right), np.count_nonzero(answered), wrong))
