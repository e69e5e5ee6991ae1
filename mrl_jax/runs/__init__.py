"""Run directories (`directory`), the checkpoints in them, and sweeps over many runs."""

from mrl_jax.runs.directory import *  # noqa: F403
