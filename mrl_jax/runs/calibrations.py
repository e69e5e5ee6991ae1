"""calibration.npz beside each trained model: what its classifiers answered to the validation split (`Calibration`)."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from mrl_jax.data.readers.arrays import load_npz
from mrl_jax.evaluate import cascade
from mrl_jax.evaluate.adaptive import Calibration
from mrl_jax.system import files, processes
from mrl_jax.system.errors import UserError


def write_calibration(path: Path, dims: Sequence[int], calibration: Calibration) -> None:
    """Write the calibration of the classifiers at `dims`."""
    if processes.is_process0():
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, dims=np.asarray(dims), **calibration._asdict())
        files.write(path, buffer.getvalue())


def read_calibration(path: Path, dims: Sequence[int]) -> Calibration | None:
    """The calibration of the classifiers at `dims`; None where there is no file, as in runs of earlier versions.

    Raises `UserError` if the file is damaged.
    """
    if not path.exists():
        return None
    stored = load_npz(path, ("dims", *Calibration._fields))
    kind, seed, temperatures, confidences, right = (stored[name] for name in Calibration._fields)
    count, examples = len(dims), right.shape[-1] if right.ndim else 0
    valid = (
        np.array_equal(stored["dims"], dims)
        and (kind.shape, seed.shape, right.shape) == ((), (), (count, examples))
        and (temperatures.shape, confidences.shape) == ((2, count), (2, count, examples))
        and (seed.dtype.kind, right.dtype.kind, kind.dtype.kind) == ("i", "b", "U")
        and temperatures.dtype.kind == confidences.dtype.kind == "f"
        and kind.item() in get_args(cascade.Kind)
        and seed >= 0
        and bool(np.isfinite(temperatures).all() and (temperatures > 0).all() and np.isfinite(confidences).all())
    )
    if not valid:
        at = ", ".join(map(str, dims))
        raise UserError(f"{path} is damaged: it is no calibration of classifiers at {at} dims; delete it to go without")
    return Calibration(kind.item(), int(seed), temperatures, confidences, right)
