"""Tasks: what is learnt from which data. The choice between them is made once, by `of`.

A new task is a module with a class like `base.Task` and an entry in `TASKS`; a new loss of a known task is a function
and an entry in `losses.LOSSES`.
"""

from collections.abc import Mapping
from typing import Any

from mrl_jax import config as configuration
from mrl_jax.config import Config
from mrl_jax.losses import LOSSES
from mrl_jax.tasks.base import Preprocess, Splits, Task
from mrl_jax.tasks.classification import Classification
from mrl_jax.tasks.mixture import Mixture
from mrl_jax.tasks.pair_objectives import ContrastiveObjective, SimilarityObjective
from mrl_jax.tasks.pairs import LearningFromPairs
from mrl_jax.tasks.tokens import LearningFromTexts
from mrl_jax.training.step import TrainStep

__all__ = ["TASKS", "Preprocess", "Splits", "Task", "of", "train_step"]

TASKS: dict[str, Task] = {  # by what the loss learns from, see `losses.LOSSES`
    "classes": Classification(),
    "pairs": LearningFromPairs(ContrastiveObjective),
    "scored pairs": LearningFromPairs(SimilarityObjective),
    "texts": LearningFromTexts(),
}


def of(config: Config) -> Task:
    """The task of a configuration's loss, or that of several sources, each with its own."""
    if configuration.parts(config):
        return Mixture(of)
    return TASKS[LOSSES[config.loss.name].learns_from]


def train_step(config: Config, description: Mapping[str, Any], steps: int = 1) -> TrainStep:
    """The training step of a run, from its configuration and the content of its dataset.json."""
    return TrainStep(
        encoder=config.encoder,
        inputs={name: tuple(shape) for name, shape in description["inputs"].items()},
        vocabulary=description["vocabulary"],
        width=config.width,
        objective=of(config).objective(config, description),
        optimizer_config=config.optimizer,
        steps=steps,
        accumulate=config.trainer.accumulate,
        precision=config.trainer.precision,
        layers=config.nesting_layers or (),
        hidden=config.nesting_hidden or (),
    )
