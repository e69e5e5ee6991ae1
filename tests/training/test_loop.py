"""One compiled step for every arm: what it computes, and that running members together or apart changes nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

from mrl_jax import arms, train
from mrl_jax.arms import Member, Row
from mrl_jax.config import LossConfig, OptimizerConfig, TrainerConfig
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.encoders.convnet import ConvNetConfig
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.evaluate import classification, neighbours, quantised, refit
from mrl_jax.losses import heads
from mrl_jax.runs import Log
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.classification import ClassObjective
from mrl_jax.training.batches import Examples, stream
from mrl_jax.training.models import FitResult
from mrl_jax.training.step import State, TrainStep, Weights
from mrl_jax.training.trainer import Trainer, group_members

DIMS, CLASSES = (2, 4, 8), 5


def products(jaxpr: Any) -> Iterator[Any]:
    """The precision of every product of a program, in functions that it calls as well."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def features(count: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    centers = np.random.default_rng(99).normal(size=(CLASSES, 6))
    return Examples({"features": (centers[labels] + rng.normal(size=(count, 6))).astype(np.float32)}, labels)


def program(steps: int = 12, **changes) -> TrainStep:
    """The step of two kinds of heads; `changes` may name fields of its objective."""
    settings = {"dims": DIMS, "kinds": ("separate", "tied"), "classes": CLASSES, "options": LossConfig(sampled=1)}
    objective = ClassObjective(**{key: changes.pop(key, value) for key, value in settings.items()})
    default = TrainStep(
        encoder=MLPConfig(hidden=(16,), dropout=0.2),
        inputs={"features": (6,)},
        vocabulary=0,
        width=8,
        objective=objective,
        optimizer_config=OptimizerConfig(learning_rate=0.02, warmup=0.2, clip_norm=1.0),
        steps=steps,
    )
    return replace(default, **changes)


def fit(
    program: TrainStep,
    members: list[Member],
    folder: Path,
    population: str = "loop",
    train: Examples | None = None,
    validation: Examples | None = None,
    at_once: int | None = None,
) -> dict[str, FitResult]:
    config = TrainerConfig(batch_size=16, evaluations=3, log_every=4, population=population, arms_at_once=at_once)
    trainer = Trainer(program, config, trainings=len({m.seed for m in members}))
    done = {}
    for group in group_members(members, trainer.at_once(members, train or features(90))):
        fitted = trainer.fit(
            group,
            sorted({m.seed for m in members}),
            train or features(90),
            validation or features(30, 1),
            folder / population / group[0].label,
            Log(folder / f"{population}.jsonl"),
            tqdm(disable=True),
        )
        done |= {one.member.label: one for one in fitted}
    return done


def close(a: object, b: object, tolerance: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance), a, b)


def test_loop_and_vmap_give_the_same_models(tmp_path: Path) -> None:
    members = [Member(arm, seed) for arm in arms.expand(["all"], DIMS) for seed in (0, 1)]
    apart, together = (fit(program(), members, tmp_path, population) for population in ("loop", "vmap"))
    assert apart.keys() == together.keys()
    for label in apart:
        close(apart[label].model, together[label].model)
        assert apart[label].step == together[label].step
    logs = [
        sorted(
            map(json.loads, (tmp_path / f"{p}.jsonl").read_text().splitlines()),
            key=lambda x: (x["member"], x["step"], x["split"]),
        )
        for p in ("loop", "vmap")
    ]
    for one, other in zip(*logs, strict=True):
        assert one.keys() == other.keys()
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.slow
def test_a_population_in_chunks_gives_the_same_models(tmp_path: Path) -> None:
    members = [Member(arm, seed) for arm in arms.expand(["all"], DIMS) for seed in (0, 1)]
    assert [len(group) for group in group_members(members, 5)] == [5, 5, 2]
    whole = fit(program(), members, tmp_path / "whole", "vmap")
    chunks = fit(program(), members, tmp_path / "chunks", "vmap", at_once=5)
    for label in whole:
        close(whole[label].model, chunks[label].model)


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_float32_products_are_float32_unless_training_says_otherwise(precision: str) -> None:
    """On accelerators JAX would round the operands; on the CPU nothing shows but the program."""
    one = program(precision=precision)
    state, arm = one.init(0), arms.expand(["mrl"], DIMS)[0]
    batch = features(8).take(np.arange(8))
    row, valid = arm.row(one.kinds), np.ones(8, bool)
    inputs = {"features": batch["features"]}
    trained = list(products(jax.make_jaxpr(one.step)(state, batch, row, jax.random.key(0)).jaxpr))
    scored = list(products(jax.make_jaxpr(one.score)(state.model, batch, valid).jaxpr))
    scored += products(jax.make_jaxpr(one.embed)(state.model, inputs).jaxpr)
    z, labels = np.zeros((20, 8), np.float32), np.zeros(20, np.int32)
    search = jax.make_jaxpr(neighbours._search, static_argnums=(2, 3))(z, z.T, DIMS, 3)
    rescored = jax.make_jaxpr(quantised._rescore, static_argnums=3)(z, z, np.zeros((20, 5), np.int32), 3)
    fitted = jax.make_jaxpr(refit._logistic_objective)(np.zeros((CLASSES, 9), np.float32), 0.1, z.T, labels)
    said = jax.make_jaxpr(classification._logits)(z, z[:CLASSES].T, np.zeros(CLASSES, np.float32))
    for found in (search, rescored, fitted, said):
        inside = list(products(found.jaxpr))
        assert inside
        scored += inside
    exact = (jax.lax.Precision.HIGHEST,) * 2
    assert len(trained) > 8
    assert set(scored) == {exact}
    assert set(trained) == {exact if precision == "highest" else (jax.lax.Precision.DEFAULT,) * 2}


def test_what_fits_in_memory_is_trained_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """By XLA's own account of a member's step; a device that says nothing of its memory gets all."""
    trainer = Trainer(program(), TrainerConfig(batch_size=16, population="vmap"))
    members = [Member(arm, seed) for arm in arms.expand(["all"], DIMS) for seed in range(5)]
    assert trainer.at_once(members, features(90)) == len(members)
    one = trainer._bytes_of_member(members[0], features(90))
    state = trainer.program.init(0)
    assert one > 3 * sum(x.nbytes for x in jax.tree.leaves(state.model))  # parameters, two moments, and the best so far
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 10 * one})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert trainer.at_once(members, features(90)) == 8
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    assert trainer.at_once(members, features(90)) == 24  # a multiple of the devices
    assert Trainer.at_once(SimpleNamespace(config=TrainerConfig(population="loop")), members, features(90)) == 1


def test_the_sampled_arm_trains_as_many_granularities_a_step_as_asked() -> None:
    """Its gradient is that of the chosen granularities, K/kept times as large, and the choice changes by step."""
    config = OptimizerConfig("sgd", learning_rate=0.1, schedule="constant", weight_decay=0.0, momentum=0.0)
    setup = program(20, optimizer_config=config, options=LossConfig(sampled=2))
    (arm,) = arms.expand(["mrl_sampled"], DIMS)
    state, batch = setup.init(0), features(16).take(np.arange(16))
    step, seen = jax.jit(setup.step), set()
    for _ in range(20):
        after, _ = step(state, batch, arm.row(setup.kinds), jax.random.key(0))
        before = state.model.params["heads"]["separate"]["bias"]
        new = after.model.params["heads"]["separate"]["bias"]
        moved = tuple(bool(np.any(np.asarray(a) != np.asarray(b))) for a, b in zip(before, new, strict=True))
        assert sum(moved) == 2
        weights = jnp.asarray([np.where(moved, 1.5, 0.0), np.zeros(3)])
        wanted, _ = step(state, batch, Row(weights, np.False_), jax.random.key(0))
        close(after.model, wanted.model)
        seen.add(moved)
        state = after
    assert len(seen) == 3


def test_uncertainty_weighting_learns_log_variances_towards_their_optimum() -> None:
    """At the optimum over s of exp(-s)·L + s/2, exp(-s) = 1 / (2 L); a granularity without weight keeps s = 0."""
    config = OptimizerConfig("sgd", learning_rate=0.3, schedule="constant", weight_decay=0.0, momentum=0.0)
    options, encoder = LossConfig(weighting="uncertainty"), MLPConfig(hidden=())
    setup = program(300, optimizer_config=config, options=options, encoder=encoder)
    frozen = jax.tree.map(lambda x: x, setup.init(0))
    row, batch = arms.expand(["ff"], DIMS)[1].row(setup.kinds), features(16).take(np.arange(16))
    state, step = frozen, jax.jit(setup.step)
    for _ in range(300):
        new, measures = step(state, batch, row, jax.random.key(0))
        params = frozen.model.params | {"log_variances": new.model.params["log_variances"]}
        state = new._replace(model=Weights(params, frozen.model.statistics))
    learned = state.model.params["log_variances"]
    np.testing.assert_allclose(np.exp(-learned["separate"][1]), 1 / (2 * measures.losses[0, 1]), rtol=1e-3)
    np.testing.assert_array_equal(learned["separate"][np.array([0, 2])], 0)
    np.testing.assert_array_equal(learned["tied"], 0)


@pytest.mark.slow
def test_loop_and_vmap_agree_where_texts_are_padded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(60) % CLASSES).astype(np.int32)
    ids = rng.integers(1, 50, (60, 20)).astype(np.int32)
    weights = np.where(np.arange(20) < rng.integers(3, 20, 60)[:, None], 0.3, 0).astype(np.float32)
    texts = Examples({"ids": ids * (weights > 0), "weights": weights}, labels)
    setup = program(4, encoder=BagConfig(), inputs={"ids": (20,), "weights": (20,)}, vocabulary=50)
    members = [Member(arm, seed) for arm in arms.expand(["mrl_e"], DIMS) for seed in (0, 1)]
    apart, together = (fit(setup, members, tmp_path, population, texts, texts) for population in ("loop", "vmap"))
    for label in apart:
        close(apart[label].model, together[label].model, 1e-4)


def narrowed(state: State, width: int, encoder_output: str) -> Weights:
    """The initial parameters of a model of `width`, cut from those of the full-width one."""
    params = jax.tree.map(lambda x: x, state.model.params)
    last = params["encoder"][encoder_output]
    if isinstance(last, dict):
        params["encoder"][encoder_output] = {k: v[..., :width] for k, v in last.items()}
    k = DIMS.index(width)
    separate = params["heads"]["separate"]
    params["heads"] = {"separate": {name: [values[k]] for name, values in separate.items()}}
    return Weights(params, state.model.statistics)


def test_ff_in_a_population_is_the_model_of_that_width_trained_alone(tmp_path: Path) -> None:
    """FF(4) among all arms of width 8 equals a width-4 network that starts from the same slice of parameters."""
    wide = program()
    members = [Member(arm, 0) for arm in arms.expand(["ff", "mrl"], DIMS)]
    among = fit(wide, members, tmp_path)["ff4-seed0"].model

    alone = program(width=4, dims=(4,), kinds=("separate",))
    model = narrowed(wide.init(0), 4, "last")
    state = State(model, alone.optimizer.init(model.params), jnp.int32(0))
    step = jax.jit(alone.step)
    train = features(90)
    key = jax.random.fold_in(jax.random.key(0), 1)
    moments = {}
    for number, rows in enumerate(stream(train, 0, 16, 0, 12), 1):
        state, _ = step(state, train.take(rows), Row(jnp.ones((1, 1)), jnp.bool_(False)), key)
        moments[number] = state.model
    kept = moments[fit(wide, [members[1]], tmp_path / "again")["ff4-seed0"].step]
    batch = features(30, 1).take(np.arange(30))
    inputs = {"features": batch["features"]}
    np.testing.assert_allclose(wide.embed(among, inputs)[:, :4], alone.embed(kept, inputs), atol=2e-6)
    close([among.params["heads"]["separate"]["kernel"][1]], kept.params["heads"]["separate"]["kernel"], 2e-6)


@pytest.mark.parametrize("kind", [pytest.param("mlp", marks=pytest.mark.slow), "bag"])
@pytest.mark.parametrize("adaptivity", [pytest.param(1.0, marks=pytest.mark.slow), 0.5])
def test_a_fixed_size_arm_in_a_program_of_its_own_width_is_the_one_hot_row(
    kind: str, adaptivity: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn they are trained narrow, together with a one-hot row: same embeddings on the prefix, same head, same log.

    With dropout of coordinates, decay, clipping and means over arrays, each of which could tell the two apart.
    """
    if kind == "mlp":
        setup, train = program(encoder=MLPConfig(hidden=())), features(90)
    else:
        rng = np.random.default_rng(0)
        weights = rng.uniform(0.1, 1, (60, 12)).astype(np.float32)
        ids = rng.integers(1, 50, (60, 12)).astype(np.int32)
        train = Examples({"ids": ids, "weights": weights}, (np.arange(60) % CLASSES).astype(np.int32))
        encoder, shapes = BagConfig(word_dropout=0.3, dropout=0.3), {"ids": (12,), "weights": (12,)}
        setup = program(encoder=encoder, inputs=shapes, vocabulary=50)
    setup = replace(setup, optimizer_config=replace(setup.optimizer_config, adaptivity=adaptivity))
    monkeypatch.setattr("mrl_jax.training.trainer.WORTH_COMPILING_STEPS", 2 * setup.steps)
    members = [Member(arm, seed) for arm in arms.expand(["ff"], DIMS) for seed in (0, 1)]
    assert [setup.narrow(m) is not None for m in DIMS] == [True, True, False]
    apart, together = (fit(setup, members, tmp_path, population, train, train) for population in ("loop", "vmap"))
    inputs = {name: array for name, array in train.take(np.arange(30)).items() if name != "label"}
    for member in members:
        one, other = apart[member.label], together[member.label]
        m, k = member.arm.width, DIMS.index(member.arm.width)
        z, wanted = setup.embed(one.model, inputs), setup.embed(other.model, inputs)
        close(z[:, :m], wanted[:, :m])
        assert not np.any(z[:, m:])
        for name in ("kernel", "bias"):
            close(*(x.model.params["heads"]["separate"][name][k] for x in (one, other)))
    logs = [
        {(x["member"], x["step"], x["split"]): x for x in Log(tmp_path / f"{p}.jsonl").read()} for p in ("loop", "vmap")
    ]
    assert logs[0].keys() == logs[1].keys()
    for key, line in logs[0].items():
        assert line["loss"] == pytest.approx(logs[1][key]["loss"], abs=1e-5)


def test_a_model_is_not_narrowed_where_that_would_be_another_model_or_no_gain() -> None:
    bag = program(encoder=BagConfig(mlp=4), inputs={"ids": (12,), "weights": (12,)}, vocabulary=50)
    assert bag.narrow(2) is None  # the hidden layer of its MLP reads all coordinates
    assert program(encoder=MLPConfig(hidden=(64, 64))).narrow(2) is None  # nearly all parameters lie before the last


def test_one_hot_row_leaves_the_other_coordinates_and_heads_where_they_were() -> None:
    setup = program(optimizer_config=OptimizerConfig(learning_rate=0.1, weight_decay=0.0))
    state = setup.init(0)
    before = jax.tree.map(np.asarray, state.model.params)
    arm = arms.expand(["ff"], DIMS)[1]
    batch = features(16).take(np.arange(16))
    after, _ = jax.jit(setup.step)(state, batch, arm.row(setup.kinds), jax.random.key(0))
    new = jax.tree.map(np.asarray, after.model.params)
    moved = np.abs(new["encoder"]["last"]["kernel"] - before["encoder"]["last"]["kernel"]).max(axis=0) > 0
    assert moved.tolist() == [True] * 4 + [False] * 4
    changed = [
        np.any(a != b)
        for a, b in zip(new["heads"]["separate"]["kernel"], before["heads"]["separate"]["kernel"], strict=True)
    ]
    assert changed == [False, True, False]
    close(new["heads"]["tied"], before["heads"]["tied"], 0)


def test_one_step_of_sgd_is_the_formula() -> None:
    """w ← w − lr · (∇L + decay · w) for matrices, without decay for vectors; L = Σ_k c_k · CE_k."""
    config = OptimizerConfig("sgd", learning_rate=0.1, schedule="constant", weight_decay=0.01, momentum=0.0)
    setup = program(encoder=MLPConfig(hidden=()), optimizer_config=config)
    state = setup.init(3)
    batch = features(16).take(np.arange(16))
    row = jnp.asarray([[1.0, 0.5, 2.0], [0.0, 3.0, 1.0]])

    def loss(params):
        z = batch["features"] @ params["encoder"]["last"]["kernel"] + params["encoder"]["last"]["bias"]
        total = 0.0
        for k, m in enumerate(DIMS):
            head, tied = params["heads"]["separate"], params["heads"]["tied"]
            for c, w, b in (
                (row[0, k], head["kernel"][k], head["bias"][k]),
                (row[1, k], jnp.concatenate(tied["kernel"])[:m], tied["bias"]),
            ):
                total += c * optax.softmax_cross_entropy_with_integer_labels(z[:, :m] @ w + b, batch["label"]).mean()
        return total

    params = state.model.params
    grads = jax.grad(loss)(params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * (g + (0.01 * p if p.ndim >= 2 else 0)), params, grads)
    after, _ = jax.jit(setup.step)(state, batch, Row(row, jnp.bool_(False)), jax.random.key(0))
    close(after.model.params, expected)


def test_accumulated_gradients_equal_those_of_the_whole_batch() -> None:
    whole = program(encoder=MLPConfig(hidden=(16,), dropout=0.0))
    parts = replace(whole, accumulate=4)
    batch = features(16).take(np.arange(16))
    row = Row(jnp.ones((2, 3)), jnp.bool_(False))
    one, measures = jax.jit(whole.step)(whole.init(0), batch, row, jax.random.key(0))
    other, others = jax.jit(parts.step)(parts.init(0), batch, row, jax.random.key(0))
    close(one.model, other.model)
    close(measures, others)


@pytest.mark.slow
def test_running_statistics_follow_parts_of_a_batch_whatever_the_loss() -> None:
    """Batch norm, with a loss that takes the parts of a batch one by one, and with one that couples its examples."""
    images = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32)
    batch = {"image": images, "label": (np.arange(8) % CLASSES).astype(np.int32)}
    row = Row(jnp.ones((1, 3)), jnp.bool_(False))
    shapes, statistics = {"image": (4, 4, 1)}, []
    for shortlist in (0.0, 1.0):
        encoder, options = ConvNetConfig(channels=1), LossConfig(shortlist=shortlist)
        one = program(encoder=encoder, inputs=shapes, kinds=("separate",), options=options, accumulate=2)
        state, _ = jax.jit(one.step)(one.init(0), batch, row, jax.random.key(0))
        statistics.append(state.model.statistics)
    close(*statistics)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_schedule_warms_up_and_ends_at_zero(decay: str) -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=0.1, schedule=decay)
    schedule, of_row = (
        program(100, optimizer_config=replace(config, warmup=w)).schedule for w in (0.1, jnp.float32(0.1))
    )
    rates = np.array([schedule(step) for step in range(101)])
    np.testing.assert_allclose(rates, [of_row(step) for step in range(101)], atol=1e-6)
    assert np.all(np.diff(rates[:11]) > 0)
    assert rates[10] == pytest.approx(1.0)
    assert np.all(np.diff(rates[10:]) < 0)
    np.testing.assert_allclose(rates[55], 0.5, atol=1e-6)
    assert rates[100] == pytest.approx(0, abs=1e-7)


def test_best_moment_is_the_one_with_the_best_validation_accuracy(tmp_path: Path) -> None:
    setup = program(40, optimizer_config=OptimizerConfig("sgd", learning_rate=0.05, schedule="constant"))
    member = Member(arms.expand(["mrl"], DIMS)[0], 0)
    config = TrainerConfig(batch_size=16, evaluations=20, log_every=4)
    log = Log(tmp_path / "log")
    (one,) = Trainer(setup, config).fit(
        (member,), (0,), features(90), features(30, 1), tmp_path, log, tqdm(disable=True)
    )
    averages = {x["step"]: np.mean(list(x["accuracy"].values())) for x in log.read() if x["split"] == "validation"}
    assert len(averages) == 20
    assert one.accuracy == pytest.approx(max(averages.values()), abs=1e-6)
    assert one.step == min(step for step, value in averages.items() if value > max(averages.values()) - 1e-7)
    batch = features(30, 1).take(np.arange(30))
    z = setup.embed(one.model, {"features": batch["features"]})
    right = [
        np.mean(np.argmax(logits, 1) == batch["label"])
        for logits in heads.logits(one.model.params["heads"]["separate"], "separate", z, DIMS)
    ]
    assert np.mean(right) == pytest.approx(one.accuracy, abs=1e-6)


def test_members_of_a_seed_share_initial_parameters_and_seeds_differ() -> None:
    close(program().init(0), program().init(0), 0)
    first, second = program().init(0).model.params, program().init(1).model.params
    assert np.abs(first["encoder"]["last"]["kernel"] - second["encoder"]["last"]["kernel"]).max() > 0.01


TWO_DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
from mrl_jax import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("population", ["loop", "vmap"])
def test_data_parallel_training_gives_the_single_device_numbers(
    population: str, tiny: list[str], tmp_path: Path
) -> None:
    words = [*tiny, f"results_dir={tmp_path}", f"trainer.population={population}", "arms=[mrl,mrl_e]"]
    words += ["evaluation.refit=null", "evaluation.quantised=false", "evaluation.interpolated=false"]
    assert train.main([*words, "run=on1"]) == 0
    command = [sys.executable, "-c", TWO_DEVICES, *words, "run=on2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    losses = {}
    for devices in (1, 2):
        folder = tmp_path / "tiny" / f"on{devices}"
        assert len(json.loads((folder / "environment.json").read_text())["devices"]) == devices
        losses[devices] = [list(line["loss"].values()) for line in Log(folder / "metrics.jsonl").read()]
    np.testing.assert_allclose(losses[1], losses[2], atol=1e-4)


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.batch_size=10 .* multiple of 4"):
        Trainer(program(), TrainerConfig(batch_size=10, accumulate=4))
