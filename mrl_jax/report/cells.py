"""Numbers as the text of cells and hover boxes: shares as percent, differences as signed percentage points."""

import math
from collections.abc import Mapping

import numpy as np

from mrl_jax.report.statistics import Difference, Interval

NONE = "–"  # not measured, or not known


def percent(values: np.ndarray | float, digits: int = 2) -> str:
    return f"{100 * float(np.mean(values)):.{digits}f}"


def mean(values: np.ndarray | None, spread: bool = True) -> str:
    """The mean over seeds, and where wanted their standard deviation."""
    if values is None:
        return NONE
    return percent(values) + (f" ± {100 * values.std(ddof=1):.2f}" if spread and len(values) > 1 else "")


def signed(values: np.ndarray | float) -> str:
    return f"{100 * float(np.mean(values)):+.2f}".replace("-", "−")


def points(difference: Difference | None) -> str:
    if difference is None:
        return NONE
    known = not math.isnan(difference.low)
    return signed(difference.mean) + (f" [{signed(difference.low)}, {signed(difference.high)}]" if known else "")


def p_value(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.p_holm):
        return NONE
    return "<0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}"


def interval(of: Interval, scale: float, form: str) -> str:
    middle, low, high = (f"{scale * x:{form}}".replace("-", "−") for x in of)
    return middle if math.isnan(of.low) else f"{middle} [{low}, {high}]"


def setting(settings: Mapping[str, float | None], key: str) -> str:
    """The value of a setting of an arm: none where that is no bound, – where the arm did not try it."""
    value = settings.get(key, math.nan)
    return "none" if value is None else NONE if math.isnan(value) else f"{value:.3g}"
