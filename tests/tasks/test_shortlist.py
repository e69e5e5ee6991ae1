"""`loss.shortlist` in the objectives of all tasks: the full width's neighbours teach prefixes, where it is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import config
from mrl_jax.config import LossConfig
from mrl_jax.losses import heads, nested_distillation, nested_info_nce
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.classification import ClassObjective
from mrl_jax.tasks.pair_objectives import ContrastiveObjective, SimilarityObjective

DIMS, WIDTH, B = (2, 4, 8), 8, 6
ONES = jnp.ones((1, len(DIMS)))
SETTINGS = {"shortlist": 0.7, "shortlist_k": 3, "shortlist_temperature": 0.1}
Z = jnp.asarray(np.random.default_rng(0).normal(size=(3 * B, WIDTH)), jnp.float32)


def of_classes(**settings: float) -> ClassObjective:
    return ClassObjective(DIMS, ("separate",), 4, LossConfig(**settings))  # type: ignore[arg-type]


def test_classes_are_taught_by_the_other_examples_of_the_batch() -> None:
    objective, labels = of_classes(**SETTINGS), jnp.arange(B) % 4
    params = objective.init(jax.random.key(0))
    plain, _ = heads.nested_loss(params["heads"]["separate"], "separate", Z[:B], labels, ONES[0], DIMS)
    taught, _ = nested_distillation(Z[:B], None, DIMS, ONES[0], 0.1, neighbours=3)
    np.testing.assert_allclose(objective.loss(params, Z[:B], labels, ONES)[0], plain + 0.7 * taught, rtol=1e-6)
    assert objective.couples_examples  # so that parts of a batch are not taken alone
    assert not of_classes().couples_examples


def test_queries_are_taught_by_all_candidates_with_hard_negatives() -> None:
    objective = ContrastiveObjective(DIMS, 3, LossConfig("info_nce", **SETTINGS))  # type: ignore[arg-type]
    plain, _ = nested_info_nce(Z[:B], Z[B:], DIMS, ONES[0], 0.05)
    taught, _ = nested_distillation(Z[:B], Z[B:], DIMS, ONES[0], 0.1, neighbours=3)
    np.testing.assert_allclose(objective.loss({}, Z, jnp.zeros(B), ONES)[0], plain + 0.7 * taught, rtol=1e-6)


def test_the_texts_of_scored_pairs_teach_each_other() -> None:
    z, scores = Z[: 2 * B], jnp.linspace(0, 1, B)
    with_it, without = (
        SimilarityObjective(DIMS, 2, LossConfig("cosent", **settings)).loss({}, z, scores, ONES)[0]  # type: ignore[arg-type]
        for settings in (SETTINGS, {})
    )
    taught, _ = nested_distillation(z, None, DIMS, ONES[0], 0.1, neighbours=3)
    np.testing.assert_allclose(with_it, without + 0.7 * taught, rtol=1e-6)


@pytest.mark.parametrize("settings", [SETTINGS, {"distillation": 0.5}])
@pytest.mark.parametrize("k", range(len(DIMS)))
def test_a_fixed_size_model_is_not_taught_by_coordinates_that_it_does_not_train(
    k: int, settings: dict[str, float]
) -> None:
    row = jnp.eye(len(DIMS))[k][None]
    with_it, without = (
        ContrastiveObjective(DIMS, 3, LossConfig("info_nce", **s)).loss({}, Z, jnp.zeros(B), row)[0]  # type: ignore[arg-type]
        for s in (settings, {})
    )
    assert with_it == without


@pytest.mark.parametrize("settings", [SETTINGS, {"distillation": 0.5}])
@pytest.mark.parametrize("drawn", [(0, 1), (0, 2)])
def test_the_full_width_teaches_a_sampled_arm_in_steps_that_do_not_draw_it(
    drawn: tuple[int, ...], settings: dict[str, float]
) -> None:
    row = jnp.zeros((1, len(DIMS))).at[0, jnp.array(drawn)].set(1.5)
    with_it, without = (
        ContrastiveObjective(DIMS, 3, LossConfig("info_nce", **s)).loss({}, Z, jnp.zeros(B), row, ONES)[0]  # type: ignore[arg-type]
        for s in (settings, {})
    )
    assert with_it > without


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss.shortlist=-1"], "loss.shortlist=-1"),
        (["loss.shortlist=1", "loss.shortlist_k=0"], "loss.shortlist_k=0 is not allowed; at least 1, or null"),
        (["loss.shortlist_k=5"], "loss.shortlist_k=5 is not allowed with loss.shortlist=0"),
        (["loss.shortlist_temperature=0.1"], "loss.shortlist_temperature=0.1 is not allowed with loss.shortlist=0"),
        (
            ["loss.shortlist=1", "width=8", "nesting_dims=[4,8]", "loss.weights=[1,0]"],
            r"loss.shortlist=1 is not allowed with loss.weights=\[1.0, 0.0\]: the full width teaches",
        ),
        (
            ["optimizer=sgd", "optimizer.adaptivity=0.5"],
            "optimizer.adaptivity=0.5 is not allowed with optimizer.name=sgd",
        ),
    ],
)
def test_a_setting_that_does_nothing_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config.from_command_line(["name=x", "data=newsgroups", "encoder=bag", *words])
