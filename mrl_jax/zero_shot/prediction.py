"""What agreement with the full width lets expect of nDCG@10, where nobody judged.

On judged collections the share of the full width's nDCG@10 that is lost follows from the share of its ten best
documents that is lost, at every dim and however the documents are stored:

    1 − nDCG@10(m) / nDCG@10(D)  ≈  (1 − overlap@10(m))^γ

The exponent γ is above 1, as the documents that change places are rarely the relevant ones, and varies between
collections. Per collection and model it is fitted by least squares, where the variance about the curve is
σ² · (1 − overlap): each document that changes adds its noise. With the mean μ and the variance s² of the collections'
mean log γ over C of them, and the variance w² between M models on one, another model on one more collection has

    log γ = μ ± t(C − 1) · √(s² (1 + 1/C) + w² (1 − 1/M))

The interval of a share is wider than that of its curve by t · σ · √(1 − overlap), in quadrature. `leave_one_out` says
how often it has been right. The exponents are in calibration.json, written by experiments/collections/calibrate.py.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import t

from mrl_jax.zero_shot.retention import LEVEL

FILE = Path(__file__).with_name("calibration.json")
LEAST_CHANGE = 0.01  # of the best ten, a tenth of a document per query: measured shares have an error there, too
LEAST_COVERAGE, LEAST_OF_ONE = 0.9, 0.5  # mean over collections, and of each
LARGEST_LOG_EXPONENT = 4.0  # of a collection that loses nothing

Curves = Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]  # (collection, model) → overlaps and shares, float [n]


class Share(NamedTuple):
    """A share of the full width's nDCG@10, and the 95 % interval of one more collection."""

    share: float
    low: float
    high: float


class Calibration(NamedTuple):
    """The exponents of judged collections."""

    log_exponents: dict[str, dict[str, float]]  # collection → model → log γ
    spread: float  # σ
    coverage: Mapping[
        str, float
    ] = {}  # by collection the share of its measurements that the interval from others holds

    @property
    def is_trusted(self) -> bool:
        """Whether the intervals have held enough of what was measured."""
        shares = [*self.coverage.values()]
        return bool(np.mean(shares) >= LEAST_COVERAGE and min(shares) >= LEAST_OF_ONE)

    def expect(self, overlap: float) -> Share:
        """The share to expect at an agreement with the full width."""
        means = np.array([np.mean([*of.values()]) for of in self.log_exponents.values()])
        count, models = len(means), min(len(of) for of in self.log_exponents.values())
        within = np.mean([np.var([*of.values()], ddof=1) if len(of) > 1 else 0.0 for of in self.log_exponents.values()])
        variance = means.var(ddof=1) * (1 + 1 / count) + within * (1 - 1 / models)
        reach = float(t.ppf(1 - LEVEL / 2, count - 1))
        centre, half = float(means.mean()), reach * float(np.sqrt(variance))
        share, low, high = (float(curve(np.array(overlap), x)) for x in (centre, centre - half, centre + half))
        noise = reach * self.spread * (1 - overlap) ** 0.5
        return Share(share, share - float(np.hypot(share - low, noise)), share + float(np.hypot(high - share, noise)))


def curve(overlaps: np.ndarray, log_exponent: float) -> np.ndarray:
    """The share of nDCG@10 on the curve of an exponent."""
    return np.asarray(1 - (1 - overlaps) ** np.exp(log_exponent))


def calibrate(curves: Curves) -> Calibration:
    """Fit an exponent per collection and model; three collections at least."""
    exponents: dict[str, dict[str, float]] = {}
    squares = []
    for (collection, model), (overlaps, shares) in curves.items():

        def error(x: float, overlaps: np.ndarray = overlaps, shares: np.ndarray = shares) -> float:
            return float(np.mean((curve(overlaps, x) - shares) ** 2 / np.maximum(1 - overlaps, LEAST_CHANGE)))

        best = minimize_scalar(error, bounds=(0, LARGEST_LOG_EXPONENT), method="bounded")
        exponents.setdefault(collection, {})[model] = float(best.x)
        squares.append(best.fun)
    return Calibration(exponents, float(np.sqrt(np.mean(squares))))


def leave_one_out(curves: Curves) -> dict[str, float]:
    """Per collection the share of its measurements that lie in the interval which the others predict."""
    coverage = {}
    for left_out in dict.fromkeys(collection for collection, _ in curves):
        others = calibrate({key: pairs for key, pairs in curves.items() if key[0] != left_out})
        points = [point for key, pairs in curves.items() if key[0] == left_out for point in zip(*pairs, strict=True)]
        intervals = [others.expect(overlap) for overlap, _ in points]
        hits = [one.low <= share <= one.high for one, (_, share) in zip(intervals, points, strict=True)]
        coverage[left_out] = float(np.mean(hits))
    return coverage


@functools.cache
def load(queries: str) -> Calibration:
    """The calibration for agreement that is measured by `queries`, or by `documents` held out as queries."""
    content = json.loads(FILE.read_text(encoding="utf-8"))[queries]
    return Calibration(content["log_exponents"], content["spread"], content["coverage"])


def smallest(shares: Mapping[int, Share], least: float) -> tuple[int | None, int | None, int | None]:
    """The smallest dim from which on the expected share is at least `least`, and those by the upper and the lower end
    of the interval; None where the largest dim has less."""

    def first(end: str) -> int | None:
        enough = None
        for dim in sorted(shares, reverse=True):
            if getattr(shares[dim], end) < least:
                break
            enough = dim
        return enough

    return first("share"), first("high"), first("low")
