"""Expected calibration error: how far confidence is from accuracy."""

import numpy as np


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Σ_b (n_b / n) · |accuracy_b − mean confidence_b| over equal-width bins (Guo et al. 2017, arXiv:1706.04599).

    `confidence` [n] in (0, 1], `correct` [n] bool. Bins are half-open on the left, (0, 1/15], (1/15, 2/15], …
    """
    index = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, np.asarray(correct, np.float64) - np.asarray(confidence, np.float64), bins)
    return float(np.abs(gap).sum() / len(index))
