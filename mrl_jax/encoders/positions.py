"""Positions of patches in two dimensions: a fixed table of sines, and the interpolation of a table that was learnt.

sin-cos     [sin x·ω, cos x·ω, sin y·ω, cos y·ω],   ω_i = 10000^(−i / (d/4 − 1)),   i = 0 … d/4 − 1
            (MoCo v3, Chen et al., 2021; Beyer et al., 2022, arXiv:2205.01580)
bicubic     each new place is a weighted sum of 4 × 4 old ones, cubic convolution with a = −3/4 (Keys, 1981);
            smoothed, with a = −1/2, of as many old places as a new one covers: those of PyTorch, `antialias`
"""

import numpy as np


def sincos(grid: tuple[int, int], hidden: int) -> np.ndarray:
    """The table of sines for a grid of (rows, columns), float32 [rows · columns, hidden]; hidden is a multiple of 4."""
    y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)
    omega = 10_000.0 ** -(np.arange(hidden // 4) / max(hidden // 4 - 1, 1))
    parts = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
    return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")


def resample(table: np.ndarray, old: tuple[int, int], new: tuple[int, int], antialias: bool) -> np.ndarray:
    """A table [rows · columns, hidden] for the grid `old` as one for the grid `new`, float32."""
    if old == new:
        return table
    rows, columns = (bicubic(n, m, antialias) for n, m in zip(old, new, strict=True))
    places: np.ndarray = np.einsum(
        "ir,rch,jc->ijh", rows, table.reshape(*old, -1).astype(np.float64), columns, optimize=True
    )
    return np.ascontiguousarray(places.reshape(new[0] * new[1], -1), np.float32)


def bicubic(old: int, new: int, antialias: bool) -> np.ndarray:
    """The weights [new, old] of one axis. Places outside of the old ones are those at the edge, or with `antialias`
    left out."""
    scale = old / new
    if antialias:
        stretch = max(scale, 1.0)
        centres = (np.arange(new)[:, None] + 0.5) * scale
        # PyTorch cuts each sum to whole places.
        first = np.maximum(np.floor(centres - 2 * stretch + 0.5), 0)
        last = np.minimum(np.floor(centres + 2 * stretch + 0.5), old)
        at = np.arange(old)[None, :]
        weights = np.where((at >= first) & (at < last), cubic((at - centres + 0.5) / stretch, -0.5), 0.0)
        normalised: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
        return normalised
    centres = (np.arange(new) + 0.5) * scale - 0.5
    start = np.floor(centres).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        np.add.at(weights, (np.arange(new), np.clip(start + tap, 0, old - 1)), cubic(centres - start - tap, -0.75))
    return weights


def cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The kernel of cubic convolution (Keys, 1981)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
