"""Settings as arguments of the compiled step give the numbers that the same settings give as constants."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax import arms, rows
from mrl_jax.arms import Member
from mrl_jax.config import LossConfig, OptimizerConfig
from mrl_jax.encoders import ENCODERS
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.encoders.static import StaticConfig
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.losses import heads
from mrl_jax.tasks.classification import ClassObjective
from mrl_jax.tasks.pair_objectives import ContrastiveObjective, SimilarityObjective
from mrl_jax.training.step import State, TrainStep

DIMS, CLASSES, BATCH, STEPS = (2, 4, 8), 5, 12, 6
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, BATCH).astype(np.int32)
IDS = RNG.integers(1, 20, (2 * BATCH, 7)).astype(np.int32)
ONES = np.ones(IDS.shape, np.float32)
VECTORS = RNG.normal(size=(2 * BATCH, 6)).astype(np.float32)
TEXT_SHAPES = {"ids": (7,), "weights": (7,)}
TRANSFORMER = TransformerConfig(layers=2, heads=2, hidden=8, intermediate=16, max_length=8, dropout=0.1)

MLP = MLPConfig(hidden=(16,), dropout=0.2)
FEATURES = {"features": VECTORS[:BATCH], "label": LABELS}
WORDS = {"ids": IDS[:BATCH], "weights": ONES[:BATCH], "label": LABELS}
TOKENS = {"ids": IDS[:BATCH], "mask": ONES[:BATCH].astype(np.int32), "label": LABELS}

# Adam would make steps of rounding errors where the gradient is 0, as that of a bias of the keys.
SGD = {"optimizer_config": OptimizerConfig(name="sgd", learning_rate=0.1)}


def program(encoder: Any, batch: Mapping[str, np.ndarray], objective: Any = None, **changes: Any) -> TrainStep:
    inputs = {name: array.shape[1:] for name, array in batch.items() if name != "label"}
    nested = ClassObjective(DIMS, ("separate", "tied"), CLASSES, LossConfig())
    optimizer = changes.pop("optimizer_config", OptimizerConfig(learning_rate=0.02))
    vocabulary = 0 if "features" in inputs else 20
    return TrainStep(encoder, inputs, vocabulary, DIMS[-1], objective or nested, optimizer, STEPS, **changes)


def with_constants(step: TrainStep, values: Mapping[str, float]) -> TrainStep:
    """The step whose configuration has these values."""
    part = {name: rows.of_section(values, name) for name in ("encoder", "optimizer", "loss")}
    return replace(
        step,
        encoder=replace(step.encoder, **part["encoder"]),
        optimizer_config=replace(step.optimizer_config, **part["optimizer"]),
        objective=replace(step.objective, options=replace(step.objective.options, **part["loss"])),
    )


def trained(step: TrainStep, member: Member, batch: Mapping[str, np.ndarray]) -> tuple[State, list[Any]]:
    update, key = jax.jit(step.step), jax.random.fold_in(jax.random.key(member.seed), 1)
    state = step.with_settings(dict(member.settings)).init(member.seed)
    measures = []
    for _ in range(STEPS):
        state, measure = update(state, batch, member.row(step.kinds), key)
        measures.append(measure)
    return state, measures


def both(
    step: TrainStep, batch: Mapping[str, np.ndarray], values: Mapping[str, float], tolerance: float = 2e-6
) -> tuple[State, State]:
    """Train with the values as a row and as constants, and compare; the states."""
    arm = arms.expand(["mrl"], DIMS)[0]
    ours, logged = trained(step, Member(arm, 3, tuple(values.items())), batch)
    wanted, expected = trained(with_constants(step, values), Member(arm, 3), batch)
    for got, want in ((ours.model, wanted.model), (logged, expected)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance), got, want)
    return ours, wanted


CASES: dict[str, tuple[Any, Mapping[str, np.ndarray], dict[str, Any], dict[str, float]]] = {
    "adamw": (
        MLP,
        FEATURES,
        {"optimizer_config": OptimizerConfig(clip_norm=5.0)},
        {
            "optimizer.learning_rate": 0.03,
            "optimizer.weight_decay": 0.2,
            "optimizer.momentum": 0.8,
            "optimizer.adaptivity": 0.5,
            "optimizer.warmup": 0.4,
            "optimizer.clip_norm": 0.7,
            "loss.label_smoothing": 0.1,
            "encoder.dropout": 0.3,
        },
    ),
    "no warm-up, no clipping": (MLP, FEATURES, {}, {"optimizer.warmup": 0.0, "optimizer.learning_rate": 0.05}),
    "constant rate": (
        MLP,
        FEATURES,
        {"optimizer_config": OptimizerConfig(schedule="constant")},
        {"optimizer.warmup": 0.5, "optimizer.learning_rate": 0.05},
    ),
    "sgd": (
        MLP,
        FEATURES,
        {"optimizer_config": OptimizerConfig(name="sgd")},
        {"optimizer.learning_rate": 0.1, "optimizer.momentum": 0.5, "optimizer.weight_decay": 0.01},
    ),
    "parts of a batch": (MLP, FEATURES, {"accumulate": 3}, {"encoder.dropout": 0.4, "loss.label_smoothing": 0.2}),
    "shortlist": (
        MLP,
        FEATURES,
        {"objective": ClassObjective(DIMS, ("separate", "tied"), CLASSES, LossConfig(shortlist=1.0))},
        {"loss.shortlist": 0.3, "loss.shortlist_temperature": 0.2},
    ),
    "prefix gradient": (MLP, FEATURES, SGD, {"loss.prefix_gradient": 0.4, "loss.label_smoothing": 0.1}),
    "bag": (BagConfig(), WORDS, {}, {"encoder.word_dropout": 0.25, "encoder.dropout": 0.2}),
    "static": (StaticConfig(), WORDS, {}, {"encoder.token_dropout": 0.25, "encoder.dropout": 0.2}),
    "transformer": (TRANSFORMER, TOKENS, SGD, {"encoder.dropout": 0.3, "encoder.attention_dropout": 0.2}),
    "transformer, remat": (
        replace(TRANSFORMER, remat=True),
        TOKENS,
        SGD,
        {"encoder.dropout": 0.3, "encoder.attention_dropout": 0.2},
    ),
}


SLOW = {"transformer, remat": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in CASES])
def test_a_row_trains_as_constants_do(name: str) -> None:
    encoder, batch, changes, values = CASES[name]
    state, _ = both(program(encoder, batch, **changes), batch, values)
    untouched, _ = trained(program(encoder, batch, **changes), Member(arms.expand(["mrl"], DIMS)[0], 3), batch)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.model.params, untouched.model.params)
    assert max(jax.tree.leaves(moved)) > 1e-4  # the settings have an effect


PAIRS = {"features": VECTORS, "label": np.zeros(BATCH, np.float32)}
SCORED = {"features": VECTORS, "label": RNG.uniform(size=BATCH).astype(np.float32)}


@pytest.mark.parametrize(
    ("objective", "batch", "values", "parts"),
    [
        (ContrastiveObjective(DIMS, 2, LossConfig("info_nce")), PAIRS, {"loss.temperature": 0.2}, 1),
        (ContrastiveObjective(DIMS, 2, LossConfig("info_nce")), PAIRS, {"loss.temperature": 0.2}, 4),
        (
            ContrastiveObjective(DIMS, 2, LossConfig("info_nce", learned_temperature=True)),
            PAIRS,
            {"loss.temperature": 0.2, "optimizer.learning_rate": 0.01},
            1,
        ),
        (
            ContrastiveObjective(DIMS, 2, LossConfig("info_nce")),
            PAIRS,
            {"loss.temperature": 0.1, "loss.distillation": 0.5, "loss.shortlist": 0.5, "loss.binary": 0.3},
            1,
        ),
        (ContrastiveObjective(DIMS, 2, LossConfig("sigmoid")), PAIRS, {"loss.temperature": 0.2}, 1),
        (SimilarityObjective(DIMS, 2, LossConfig("cosent")), SCORED, {"loss.temperature": 0.2}, 1),
        (SimilarityObjective(DIMS, 2, LossConfig("cosent")), SCORED, {"loss.distillation": 0.5}, 1),
    ],
)
def test_a_row_of_pairs_trains_as_constants_do(objective: Any, batch: Any, values: Any, parts: int) -> None:
    step = program(MLP, batch, objective, accumulate=parts)
    ours, wanted = both(step, batch, values | {"encoder.dropout": 0.1})
    shown = [
        jax.jit(one.score)(state.model, batch, np.ones(BATCH, bool), row)
        for one, state, row in (
            (step, ours, {key: np.float32(value) for key, value in values.items()}),
            (with_constants(step, values), wanted, {}),
        )
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *shown)


def test_members_with_other_settings_train_together_as_alone() -> None:
    step, arm = program(MLP, FEATURES), arms.expand(["mrl_e", "ff"], DIMS)
    members = [
        Member(arm[0], 0, (("optimizer.learning_rate", 0.01), ("encoder.dropout", 0.1))),
        Member(arm[1], 1, (("optimizer.learning_rate", 0.05), ("encoder.dropout", 0.5))),
    ]
    states = jax.tree.map(lambda *x: jnp.stack(x), *(step.init(member.seed) for member in members))
    row = jax.tree.map(lambda *x: np.stack(x), *(member.row(step.kinds) for member in members))
    key = jnp.stack([jax.random.fold_in(jax.random.key(member.seed), 1) for member in members])
    batch = {name: np.stack([array, array]) for name, array in FEATURES.items()}
    update = jax.jit(jax.vmap(step.step))
    for _ in range(STEPS):
        states, _ = update(states, batch, row, key)
    for i, member in enumerate(members):
        alone, _ = trained(step, member, FEATURES)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-6), states.model, alone.model)


def test_a_fixed_size_model_of_its_own_width_takes_the_row_too() -> None:
    step = program(MLP, FEATURES)
    narrow = step.narrow(2)
    if narrow is None:  # does not halve the parameters of so small a network
        narrow = replace(step, width=2, objective=step.objective.narrow(2), wide=step)
    values = (("optimizer.learning_rate", 0.05), ("encoder.dropout", 0.3), ("loss.label_smoothing", 0.1))
    arm = arms.expand(["ff"], DIMS)[0]
    wide, _ = trained(step, Member(arm, 0, values), FEATURES)
    own, _ = trained(narrow, Member(replace(arm, weights=(1.0,)), 0, values), FEATURES)
    z = [one.embed(state.model, {"features": VECTORS})[:, :2] for one, state in ((step, wide), (narrow, own))]
    np.testing.assert_allclose(*z, atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(
    rate=st.floats(1e-4, 0.3),
    decay=st.floats(0, 1),
    momentum=st.floats(0, 0.99),
    warmup=st.floats(0, 1),
    smoothing=st.floats(0, 0.9),
)
def test_any_values_train_as_constants_do(
    rate: float, decay: float, momentum: float, warmup: float, smoothing: float
) -> None:
    values = {"optimizer.learning_rate": rate, "optimizer.weight_decay": decay, "optimizer.momentum": momentum}
    values |= {"optimizer.warmup": warmup, "loss.label_smoothing": smoothing}
    both(program(replace(MLP, dropout=0.0), FEATURES), FEATURES, values, tolerance=1e-3 * rate + 1e-6)


def test_the_schedule_of_a_row_is_that_of_constants() -> None:
    for name in ("cosine", "constant"):
        for warmup in (0.0, 0.1, 0.34, 1.0):
            step = program(MLP, FEATURES, optimizer_config=OptimizerConfig(schedule=name, warmup=warmup))
            row = step.with_settings({"optimizer.warmup": jnp.float32(warmup)})
            for at in range(STEPS + 2):
                np.testing.assert_allclose(row.schedule(at), step.schedule(at), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_tiles_of_classes_take_a_traced_smoothing(smoothing: float) -> None:
    head = heads.init(jax.random.key(0), "separate", DIMS, 37)
    z, labels = RNG.normal(size=(9, 8)).astype(np.float32), RNG.integers(0, 37, 9).astype(np.int32)

    def loss(head: Any, smoothing: Any, streamed: bool) -> jax.Array:
        return heads.nested_loss(head, "separate", z, labels, jnp.ones(3), DIMS, smoothing, streamed)[0]

    traced = jax.jit(jax.value_and_grad(loss), static_argnums=2)(head, jnp.float32(smoothing), True)
    plain = jax.value_and_grad(loss)(head, smoothing, False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), traced, plain)


def test_rates_of_every_encoder_are_fields_and_attributes() -> None:
    for entry in ENCODERS.values():
        assert {*entry.rates} <= set(entry.config.__dataclass_fields__)


def test_an_arm_with_settings_of_its_own_is_the_loss_that_it_names() -> None:
    """MRL distilled beside MRL in one program is MRL with the loss configured, and leaves MRL as it is alone."""
    step = program(MLP, FEATURES)
    population = arms.expand(["mrl", "mrl_distilled", "ff"], DIMS)
    own = arms.own_settings(population, lambda key: 0.0)
    assert set(own.values()) == {(("loss.distillation", 0.0),), (("loss.distillation", 1.0),)}
    mrl, distilled, *_ = population
    configured = with_constants(step, {"loss.distillation": 1.0})
    for arm, alone in ((mrl, step), (distilled, configured)):
        together, _ = trained(step, Member(arm, 0, own[arm.label]), FEATURES)
        wanted, _ = trained(alone, Member(mrl, 0), FEATURES)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), together.model, wanted.model)
    assert arms.own_settings(arms.expand(["mrl", "ff"], DIMS), lambda key: 0.0)["mrl"] == ()


def test_a_detached_arm_leaves_others_as_they_are_and_begins_as_the_smallest_model() -> None:
    """Of a bag, whose coordinates share no parameters, the first block is FF's of that width: all to the bit."""
    step = program(BagConfig(), WORDS)
    population = arms.expand(["mrl", "mrl_e", "mrl_e_detached", "ff"], DIMS)[:-2]
    mrl, mrl_e, _, ff = population
    own, update = arms.own_settings(population, lambda key: 1.0), jax.jit(step.step)

    def model(arm: arms.Arm, settings: Any) -> Any:
        state, row = step.init(0), Member(arm, 0, settings).row(step.kinds)
        for _ in range(STEPS):
            state, _ = update(state, WORDS, row, jax.random.key(1))
        return state.model

    together = {arm.label: model(arm, own[arm.label]) for arm in population}
    for arm in (mrl, mrl_e, ff):
        jax.tree.map(np.testing.assert_array_equal, together[arm.label], model(arm, ()))
    together["mrl_detached"] = model(mrl, (("loss.prefix_gradient", 0.0),))
    inputs = {name: array for name, array in WORDS.items() if name != "label"}
    z = {label: np.asarray(step.embed(weights, inputs)) for label, weights in together.items()}
    np.testing.assert_array_equal(z["mrl_detached"][:, :2], z["ff2"][:, :2])
    for label in ("mrl", "mrl_e"):
        assert np.abs(z[label] - z[f"{label}_detached"])[:, :2].max() > 1e-4
