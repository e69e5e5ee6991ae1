"""The average of the weights that `optimizer.ema` asks for: its formula, what is kept of it, and that it resumes."""

import contextlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from mrl_jax import arms
from mrl_jax.arms import Member
from mrl_jax.config import OptimizerConfig, TrainerConfig
from mrl_jax.encoders.convnet import ConvNetConfig
from mrl_jax.runs import Log, checkpoint
from mrl_jax.training.step import TrainStep
from mrl_jax.training.trainer import Trainer
from tests.training.test_loop import DIMS, close, features, fit, program

(MRL,) = arms.expand(["mrl"], DIMS)
MEMBER = Member(MRL, 0)


def averaged(decay: float, **changes: object) -> TrainStep:
    return program(optimizer_config=OptimizerConfig(learning_rate=0.05, schedule="constant", ema=decay), **changes)


def test_what_is_evaluated_is_the_average_of_the_weights() -> None:
    """Against float64 averages of the weights of a training without an average, which the average does not change."""
    plain, with_average = averaged(0.0), averaged(0.7)
    states = [setup.init(0) for setup in (plain, with_average)]
    steps = [jax.jit(setup.step) for setup in (plain, with_average)]
    expected = jax.tree.map(np.float64, states[0].model)
    row, key, batch = MEMBER.row(plain.kinds), jax.random.key(1), features(16).take(np.arange(16))
    for t in range(30):
        states = [step(state, batch, row, key)[0] for step, state in zip(steps, states, strict=True)]
        kept = min(0.7, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda mean, w, d=kept: d * mean + (1 - d) * np.float64(w), expected, states[0].model)
    close(states[0].model, states[1].model)
    close(with_average.evaluated(states[1]), expected)
    far = max(float(abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (expected, states[0].model)), strict=True))
    assert far > 1e-3


def test_running_statistics_are_averaged_with_the_weights_that_they_belong_to() -> None:
    network = averaged(0.7, encoder=ConvNetConfig(channels=4), inputs={"image": (8, 8, 3)})
    state = jax.eval_shape(network.init, 0)
    assert jax.tree.structure(network.evaluated(state)) == jax.tree.structure(state.model)
    assert jax.tree.leaves(network.evaluated(state).statistics)


def test_members_in_turn_and_together_keep_the_same_averages(tmp_path: Path) -> None:
    members = [Member(arm, 0) for arm in arms.expand(["mrl", "mrl_e"], DIMS)]
    apart, together = (fit(averaged(0.9), members, tmp_path, population) for population in ("loop", "vmap"))
    last = fit(averaged(0.0), members, tmp_path / "last")
    for label, one in apart.items():
        close(one.model, together[label].model)
        assert not np.allclose(*(jax.tree.leaves(of.model)[0] for of in (one, last[label])))


class Stopping(tqdm):  # type: ignore[type-arg]
    """A progress bar that ends the training in its seventh step."""

    def update(self, n: float | None = 1) -> bool | None:
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 7:
            raise KeyboardInterrupt
        return None


def test_a_training_that_was_stopped_resumes_to_the_same_average(tmp_path: Path) -> None:
    config = TrainerConfig(batch_size=16, evaluations=3, log_every=2, checkpoint_seconds=0)
    trainer = Trainer(averaged(0.9), config)

    def train(place: Path, bar: tqdm) -> object:  # type: ignore[type-arg]
        data = features(90), features(30, 1)
        (result,) = trainer.fit([MEMBER], [0], *data, place / "states", Log(place / "metrics.jsonl"), bar)
        return result.model

    whole = train(tmp_path / "whole", tqdm(disable=True))
    with contextlib.suppress(KeyboardInterrupt):
        train(tmp_path / "stopped", Stopping(disable=True))
    assert checkpoint.saved_steps(tmp_path / "stopped" / "states")[-1] == 6
    again = train(tmp_path / "stopped", tqdm(disable=True))
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_without_an_average_the_state_is_that_of_earlier_versions() -> None:
    """So checkpoints of before can be resumed."""
    setup = averaged(0.0)
    assert jax.tree.structure(setup.init(0).optimizer) == jax.tree.structure(
        setup.optimizer.init(setup.init(0).model.params)
    )
    assert replace(setup.optimizer_config, ema=0.0) == OptimizerConfig(learning_rate=0.05, schedule="constant")
