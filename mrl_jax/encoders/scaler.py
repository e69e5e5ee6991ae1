"""Vectors of any scale: each coordinate with mean 0 and variance 1 over the training split, as a part of the model.

    x ↦ (x − μ) / σ,   μ and σ of the training vectors; 0 for a coordinate that is the same in all of them

Features come as codes of 8 bits, with offsets, or in units that differ by orders of magnitude, and a network learns
nothing from numbers far from 1. Queries and documents share one μ and σ, as they share one encoder: what sets the two
apart stays.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.encoders.onnx_graph import Graph
from mrl_jax.system import files
from mrl_jax.system.errors import UserError
from mrl_jax.text.tokenizers import Arrays

FILE = "scaler.json"
CHUNK_ROWS = 8192  # vectors in float64 at a time


@dataclass
class Scaler:
    """Features float32 [n, d] → `features`, scaled."""

    mean: np.ndarray  # float64 [d]
    inverse: np.ndarray  # float64 [d], 1 / standard deviation; 0 for a constant coordinate

    vocabulary = 0
    tokenizer = None

    @classmethod
    def fit(cls, features: np.ndarray) -> "Scaler":
        """Learn mean and standard deviation, in float64 and two passes, of the training vectors [n, d]."""
        parts = [features[i : i + CHUNK_ROWS] for i in range(0, len(features), CHUNK_ROWS)]
        mean = np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0) / len(features)
        squares = np.sum([np.square(part - mean).sum(axis=0) for part in parts], axis=0)
        varies = features.min(axis=0) < features.max(axis=0)  # exact, where σ of equal numbers may be a rounding error
        deviation = np.where(varies, np.sqrt(squares / len(features)), np.inf)
        return cls(mean, 1 / deviation)

    @classmethod
    def load(cls, directory: Path) -> "Scaler":
        """Read what `save` wrote. Raises `UserError` for a missing or damaged file."""
        path = directory / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            mean, inverse = (np.asarray(content[key], np.float64) for key in ("mean", "inverse"))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path} cannot be read: {error}; it holds the scale of the features") from None
        if mean.ndim != 1 or mean.shape != inverse.shape or not np.isfinite([mean, inverse]).all():
            raise UserError(f"{path} is damaged: it should hold two numbers for each coordinate")
        return cls(mean, inverse)

    def save(self, directory: Path) -> None:
        files.write(directory / FILE, json.dumps({"mean": self.mean.tolist(), "inverse": self.inverse.tolist()}))

    def __call__(self, raw: Any) -> Arrays:
        """`features` float32 [n, d] of n vectors of any numeric type."""
        raw = np.asarray(raw)
        if raw.ndim != 2 or raw.shape[1] != len(self.mean):
            packed = raw.ndim == 2 and 8 * raw.shape[1] == len(self.mean)
            hint = "; packed bits are unpacked by np.unpackbits(features, axis=1)" if packed else ""
            raise UserError(f"features have the shape {raw.shape}, this model reads [n, {len(self.mean)}]{hint}")
        scaled = np.empty(raw.shape, np.float32)
        for i in range(0, len(raw), CHUNK_ROWS):
            scaled[i : i + CHUNK_ROWS] = (raw[i : i + CHUNK_ROWS] - self.mean) * self.inverse
        return {"features": scaled}

    def undo(self, scaled: np.ndarray) -> np.ndarray:
        """Raw vectors float32 [n, d] that are scaled to these."""
        return (self.mean + scaled / np.where(self.inverse > 0, self.inverse, 1)).astype(np.float32)

    def traced(self, x_Bxd: jax.Array) -> jax.Array:
        """The same in float32, for an exported program: μ is subtracted in two parts, which keeps its digits."""
        high = self.mean.astype(np.float32)
        low = (self.mean - high).astype(np.float32)
        near: jax.Array = jax.lax.optimization_barrier(x_Bxd - high)  # type: ignore[no-untyped-call]  # or both are added
        return (near - low) * jnp.asarray(self.inverse, jnp.float32)

    def onnx(self, g: Graph, x: str) -> str:
        """The same in float64, as a part of an ONNX graph."""
        return g.cast(g("Mul", g("Sub", g.cast(x, "double"), self.mean), self.inverse), "float")
