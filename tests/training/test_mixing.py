"""Mixtures of images in a training step: the loss is that of soft labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import config as configuration
from mrl_jax.config import Config
from mrl_jax.data import DataConfig
from mrl_jax.encoders import mixing
from mrl_jax.encoders.vit import ViTConfig
from mrl_jax.losses import heads
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import train_step
from mrl_jax.training.objective import Objective
from mrl_jax.training.step import TrainStep

RANDOM = np.random.default_rng(0)
DIMS = (4, 8)


def step(**settings: Any) -> TrainStep:
    encoder = ViTConfig(patch=4, layers=1, hidden=8, heads=2, intermediate=8, **settings)
    config = Config(DataConfig("images"), encoder, "made", 8, DIMS, ("mrl",), 1)
    return train_step(config, {"inputs": {"image": (8, 8, 3)}, "vocabulary": 0, "classes": ["a", "b", "c"]})


BATCH = {
    "image": jnp.asarray(RANDOM.integers(0, 256, (6, 8, 8, 3)), jnp.uint8),
    "label": jnp.asarray(RANDOM.integers(0, 3, 6), jnp.int32),
}


@pytest.mark.parametrize("settings", [{"mixup": 0.3}, {"cutmix": 1.0}])
def test_the_loss_is_that_of_soft_labels_on_images_that_are_mixed(settings: dict[str, float]) -> None:
    program, key = step(**settings), jax.random.key(5)
    params, statistics = program.init(0).model
    weights = jnp.ones((1, 2)), jnp.ones((1, 2))
    (total, (losses, _)) = jax.jit(program._losses)(params, statistics, BATCH, weights, key)
    mix = mixing.draw(key, program.encoder)
    blended = mixing.mixed(jnp.asarray(BATCH["image"], jnp.float32), mix)
    z = np.asarray(step().embed(program.init(0).model, {"image": blended}), np.float64)
    one_hot = np.eye(3)[np.asarray(BATCH["label"])]
    soft = float(mix[0]) * one_hot + (1 - float(mix[0])) * one_hot[::-1]
    expected = []
    for m, (kernel, bias) in heads.classifiers(params["heads"]["separate"], "separate", DIMS, DIMS).items():
        logits = z[:, :m] @ np.asarray(kernel, np.float64) + np.asarray(bias)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected.append(-(soft * log_p).sum(axis=1).mean())
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)
    assert float(total) == pytest.approx(sum(expected), rel=1e-5)


def test_every_step_mixes_otherwise_and_the_same_again() -> None:
    config, key = ViTConfig(mixup=0.3), jax.random.key(1)
    mixes = [np.asarray(mixing.draw(jax.random.fold_in(key, i), config)) for i in (0, 1, 0)]
    assert not np.array_equal(mixes[0], mixes[1])
    np.testing.assert_array_equal(mixes[0], mixes[2])


def test_losses_without_a_label_to_mix_are_refused() -> None:
    program = step(mixup=0.2)

    class Couples:
        columns, couples_examples = 1, True

        def __getattr__(self, name: str) -> Any:
            return getattr(program.objective, name)

    objective: Objective = Couples()  # type: ignore[assignment]
    program.__dict__["objective"] = objective
    with pytest.raises(UserError, match=r"encoder.mixup and encoder.cutmix are not allowed with loss"):
        program.check()


@pytest.mark.parametrize(
    "words",
    [
        ["loss.shortlist=1"],
        ["arms=[mrl,mrl_shortlist]", "trainer.accumulate=2"],
        ["tune.trials=1", "tune.space={loss.shortlist: [0,1]}"],
    ],
)
def test_mixtures_are_refused_where_any_arm_learns_from_neighbours(words: list[str]) -> None:
    command = ["data=fashion_mnist", "encoder=convnet", "encoder.mixup=0.2", "width=32", "nesting_dims=[8,32]"]
    with pytest.raises(UserError, match=r"encoder.mixup is not allowed with .*shortlist"):
        configuration.from_command_line([*command, *words])
