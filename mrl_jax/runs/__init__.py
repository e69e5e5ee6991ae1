"""Run directories, what is written into them, the checkpoints in them, and sweeps over many runs."""

from mrl_jax.runs.directory import (
    claim,
    exists,
    find,
    lock,
    names_below,
    read_dataset,
    refuse_existing,
    reopen,
    seal,
)
from mrl_jax.runs.environment import environment
from mrl_jax.runs.results import Log, MetricRow, read_rows, write_rows

__all__ = [
    "Log",
    "MetricRow",
    "claim",
    "environment",
    "exists",
    "find",
    "lock",
    "names_below",
    "read_dataset",
    "read_rows",
    "refuse_existing",
    "reopen",
    "seal",
    "write_rows",
]
