"""The scores of a trained arm by parts of its encoder: the metrics `layer{n}_…` and `hidden{n}_…` of evaluation.csv."""

from collections.abc import Iterable, Iterator

from mrl_jax.arms import Arm
from mrl_jax.config import Config
from mrl_jax.evaluate import Score
from mrl_jax.evaluate.metrics import find
from mrl_jax.training.step import Weights
from mrl_jax.training.trainer import Trainer


def smaller(config: Config, trainer: Trainer, arm: Arm, model: Weights) -> Iterator[tuple[str, Trainer, Weights]]:
    """What the metrics of each smaller encoder begin with, and what embeds by it; of a fixed-size arm none."""
    if arm.width is not None:
        return
    for layers in (config.nesting_layers or ())[:-1]:
        yield f"layer{layers}_", trainer.part(layers, None), trainer.program.cut(model, layers, None)
    for hidden in (config.nesting_hidden or ())[:-1]:
        yield f"hidden{hidden}_", trainer.part(None, hidden), trainer.program.cut(model, None, hidden)


def named(prefix: str, scores: Iterable[Score]) -> Iterator[Score]:
    """The scores of a smaller encoder under their names: of those metrics that `metrics.FAMILIES` has for it."""
    for score in scores:
        if find(name := f"{prefix}{score.metric}") is not None:
            yield score._replace(metric=name, prediction=None)
