"""Nesting over layers and hidden units: a row at one part of the encoder and one dim is that part alone with the loss
at that dim, gradient included."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import chisquare

from mrl_jax import arms
from mrl_jax.arms import Row
from mrl_jax.config import LossConfig, OptimizerConfig
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.encoders.vit import ViTConfig
from mrl_jax.tasks.classification import ClassObjective
from mrl_jax.tasks.pair_objectives import ContrastiveObjective
from mrl_jax.training import parts
from mrl_jax.training.step import TrainStep

DIMS, LAYERS, HIDDEN, CLASSES, BATCH = (4, 8), (1, 2), (4, 16), 5, 8
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, BATCH).astype(np.int32)
TOKENS = {"ids": RNG.integers(1, 20, (2 * BATCH, 6)).astype(np.int32), "mask": np.ones((2 * BATCH, 6), np.int32)}
TOKENS["mask"][::3, 4:] = 0
IMAGES = {"image": RNG.integers(0, 255, (BATCH, 8, 8, 3)).astype(np.uint8)}
SIZES: dict[str, Any] = {"layers": 2, "heads": 2, "hidden": 8, "intermediate": 16, "dropout": 0.2}
CLASS_LOSS = ClassObjective(DIMS, ("separate", "tied"), CLASSES, LossConfig())
PAIR_LOSS = ContrastiveObjective(DIMS, 2, LossConfig(name="info_nce", mask_known=False))
FEW = {name: array[:BATCH] for name, array in TOKENS.items()}
CASES = {
    "norms before": (
        TransformerConfig(max_length=6, projection=True, family="modernbert", remat=True, **SIZES),
        FEW,
        CLASS_LOSS,
    ),
    "images": (ViTConfig(patch=4, pooling="attention", projection=True, **SIZES), IMAGES, CLASS_LOSS),
    "pairs": (TransformerConfig(max_length=6, **SIZES), TOKENS, PAIR_LOSS),
}


def step_of(encoder: Any, inputs: dict[str, np.ndarray], objective: Any, **changes: Any) -> TrainStep:
    shapes = {name: array.shape[1:] for name, array in inputs.items()}
    return TrainStep(encoder, shapes, 20, DIMS[-1], objective, OptimizerConfig(name="sgd"), 5, **changes)


def gradient(step: TrainStep, params: Any, batch: Any, weights: np.ndarray) -> tuple[Any, Any]:
    """The losses of all granularities, and the gradient of the weighted sum."""
    grads, (losses, _) = jax.jit(jax.grad(step._losses, has_aux=True))(
        params, {}, batch, (jnp.asarray(weights),) * 2, jax.random.key(7)
    )
    return losses, grads


def corner(whole: Any, shapes: Any) -> Any:
    """The parameters of a smaller encoder: of each of its arrays the first rows and columns of the same of `whole`."""

    def take(path: Any, shape: Any) -> Any:
        found = whole
        for key in path:
            found = found[key.key]
        return found[tuple(slice(n) for n in shape.shape)]

    return jax.tree_util.tree_map_with_path(take, shapes)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("norms before", "images")]


@pytest.mark.parametrize("name", ["pairs", *SLOW])
def test_a_row_at_one_part_and_dim_is_that_part_alone_with_the_loss_at_that_dim(name: str) -> None:
    encoder, inputs, objective = CASES[name]
    batch = {**inputs, "label": LABELS}
    step = step_of(encoder, inputs, objective, layers=LAYERS, hidden=HIDDEN)
    model = step.init(0).model
    # An encoder of that size, made as if there were no nesting.
    alone = step_of(replace(encoder, layers=LAYERS[0], intermediate=HIDDEN[0]), inputs, objective)
    params = {**model.params, "encoder": corner(model.params["encoder"], alone.shapes.params["encoder"])}
    row = np.zeros((len(LAYERS), len(objective.kinds), len(DIMS)), np.float32)
    row[0, 0, 1] = 1.0
    with jax.default_matmul_precision("highest"):
        losses, grads = gradient(step.with_hidden(HIDDEN[0]), model.params, batch, row)
        expected_losses, expected_grads = gradient(alone, params, batch, row[0])
    np.testing.assert_allclose(losses[0], expected_losses, rtol=1e-5)
    inside = {**grads, "encoder": corner(grads["encoder"], alone.shapes.params["encoder"])}
    for ours, theirs in zip(jax.tree.leaves(inside), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # What the part does not have learns nothing.
    assert float(optax.global_norm(grads)) == pytest.approx(float(optax.global_norm(inside)), rel=1e-5)
    part = step.part(LAYERS[0], HIDDEN[0])
    assert part.graph == alone.graph
    jax.tree.map(np.testing.assert_array_equal, step.cut(model, LAYERS[0], HIDDEN[0]).params, params)


def test_a_step_draws_hidden_units_by_the_shares_of_its_arm() -> None:
    mrl, whole = arms.expand(["mrl", "mrl_dims"], DIMS, hidden=4)
    sizes, draw = (2, 4, 8, 16), jax.jit(jax.vmap(parts.draw, (None, None, 0)), static_argnums=0)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(draw(sizes, mrl.row(("separate",)).hidden, keys))
    counts = [int(np.sum(drawn == n)) for n in sizes]
    assert sum(counts) == len(keys)
    assert chisquare(counts).pvalue > 0.01
    assert set(np.asarray(draw(sizes, whole.row(("separate",)).hidden, keys))) == {16}
    assert set(np.asarray(draw(sizes, np.array([1, 0, 0, 0], np.float32), keys))) == {2}


@pytest.mark.slow
def test_arms_together_are_those_in_turn_and_a_batch_in_parts_is_the_whole_one() -> None:
    encoder = TransformerConfig(max_length=6, attention_dropout=0.0, **{**SIZES, "dropout": 0.0})
    step = step_of(encoder, TOKENS, PAIR_LOSS, layers=LAYERS, hidden=HIDDEN)
    batch, key, state = {**TOKENS, "label": LABELS}, jax.random.key(1), step.init(0)
    chosen = arms.expand(["mrl", "mrl_dims", "ff"], DIMS, layers=len(LAYERS), hidden=len(HIDDEN))
    rows = [arm.row(step.kinds) for arm in chosen]
    assert [row.weights.tolist() for row in rows[:3]] == [
        [[[1, 1]], [[1, 1]]],
        [[[0, 0]], [[1, 1]]],
        [[[0, 0]], [[1, 0]]],
    ]
    stacked: Row = jax.tree.map(lambda *parts: np.stack(parts), *rows)
    together, _ = jax.jit(jax.vmap(step.step, (None, None, 0, None)))(state, batch, stacked, key)
    update, update_in_parts = jax.jit(step.step), jax.jit(replace(step, accumulate=2).step)
    for i, row in enumerate(rows[:2]):
        alone, measures = update(state, batch, row, key)
        assert measures.losses.shape == (len(LAYERS), 1, len(DIMS))
        # Texts in parts are those of the pairs in parts, column by column.
        halves = {k: v.reshape(2, 2, BATCH // 2, -1).swapaxes(0, 1).reshape(v.shape) for k, v in TOKENS.items()}
        in_parts, _ = update_in_parts(state, {**halves, "label": LABELS}, row, key)
        leaves = map(jax.tree.leaves, (together.model, alone.model, in_parts.model))
        for member, one, other in zip(*leaves, strict=True):
            np.testing.assert_allclose(member[i], one, atol=1e-6)
            np.testing.assert_allclose(other, one, atol=1e-6)


def test_without_nesting_layers_rows_and_losses_have_no_axis_for_them() -> None:
    encoder, inputs, objective = CASES["pairs"]
    step = step_of(encoder, inputs, objective)
    arm = arms.expand(["mrl"], DIMS)[0]
    assert arm.layers == ()
    assert arm.row(step.kinds).weights.shape == (1, len(DIMS))
    assert step.init(0).model.params.keys() == {"encoder"}
