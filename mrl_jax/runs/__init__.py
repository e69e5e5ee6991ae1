"""Run directories, what is written into them, the checkpoints in them, and sweeps over many runs."""

from mrl_jax.runs.calibrations import read_calibration, write_calibration
from mrl_jax.runs.directory import (
    claim,
    exists,
    find,
    lock,
    names_below,
    raise_seeds,
    read_dataset,
    refuse_existing,
    reopen,
    seal,
)
from mrl_jax.runs.environment import environment
from mrl_jax.runs.results import Log, MetricRow, read_rows, write_baseline, write_rows
from mrl_jax.runs.sources import folder, folders, run_of, write_evaluation

__all__ = [
    "Log",
    "MetricRow",
    "claim",
    "environment",
    "exists",
    "find",
    "folder",
    "folders",
    "lock",
    "names_below",
    "raise_seeds",
    "read_calibration",
    "read_dataset",
    "read_rows",
    "refuse_existing",
    "reopen",
    "run_of",
    "seal",
    "write_baseline",
    "write_calibration",
    "write_evaluation",
    "write_rows",
]
