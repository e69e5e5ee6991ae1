"""The tables of losses, tasks, arms, compressions and metrics have no entry that lacks what others rely on."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax import arms, config, tasks
from mrl_jax.arms import ARMS
from mrl_jax.evaluate.compress import CODES, COMPRESSIONS
from mrl_jax.evaluate.metrics import COMPARED, FAMILIES, METRICS
from mrl_jax.losses import LOSSES, PairBatch, PairSettings
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import TASKS

DIMS, WEIGHTS = (2, 6), jnp.ones(2)
SETTINGS = PairSettings(0.1, True, jnp.array([-2.0, -1.0]))
OF_PAIRS = [name for name, entry in LOSSES.items() if entry.of_pairs]


def batch() -> PairBatch:
    rng = np.random.default_rng(0)
    return PairBatch(*(jnp.float32(rng.normal(size=shape)) for shape in ((5, 6), (8, 6), (5,))))


def test_every_loss_has_a_task_and_every_task_a_loss() -> None:
    assert {entry.learns_from for entry in LOSSES.values()} == TASKS.keys()


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_loss_of_pairs_gives_a_weighted_sum_of_its_granularities_and_a_gradient(name: str) -> None:
    of_pairs = LOSSES[name].of_pairs
    assert of_pairs is not None

    def loss(anchors: jax.Array) -> tuple[jax.Array, jax.Array]:
        return of_pairs(batch()._replace(anchors=anchors), DIMS, jnp.array([0.5, 2.0]), SETTINGS)

    (total, losses_K), gradient = jax.value_and_grad(loss, has_aux=True)(batch().anchors)
    assert losses_K.shape == (2,)
    assert float(total) == pytest.approx(float(losses_K @ jnp.array([0.5, 2.0])), rel=1e-6)
    assert np.abs(gradient).max() > 0


def test_no_two_losses_of_pairs_are_the_same_function() -> None:
    values = {name: LOSSES[name].of_pairs(batch(), DIMS, WEIGHTS, SETTINGS)[0] for name in OF_PAIRS}  # type: ignore[misc]
    for a, b in itertools.combinations(values, 2):
        assert abs(float(values[a]) - float(values[b])) > 1e-3, (a, b)


@pytest.mark.parametrize("name", LOSSES)
def test_options_of_a_loss_are_keys_of_the_configuration(name: str) -> None:
    for key in LOSSES[name].options:
        section, _, option = key.partition(".")
        assert option in {item.name for item in dataclasses.fields(config.DEFAULTS[section])}, key


def test_an_option_of_another_loss_is_refused_with_its_default() -> None:
    for name, entry in LOSSES.items():
        words = ["name=x", "data=pairs", "data.train=a", "data.test=b", f"loss.name={name}", "arms=[mrl]"]
        given = {
            "loss.label_smoothing": "0.1", "loss.weighting": "uncertainty", "evaluation.cascade": "true",
            "loss.distillation": "0.5", "loss.learned_temperature": "true", "loss.teacher": "minilm",
            "loss.teacher_weight": "0.5", "loss.supervised": "false", "loss.guide": "minilm",
            "loss.guide_margin": "0.1", "trainer.no_duplicates": "true", "evaluation.few_shot": "[1,5]",
            "evaluation.by_frequency": "true", "evaluation.superclass": ".", "evaluation.unknown": "a.txt",
            "evaluation.corruption": "[typos]", "loss.binary": "0.5", "evaluation.quantised_search": "true",
            "loss.bias": "-5",
            "loss.shortlist": "0.5", "loss.prefix_gradient": "0.5", "loss.mask_rate": "0.3", "loss.whole_words": "true",
        }  # fmt: skip
        assert given.keys() == {key for other in LOSSES.values() for key in other.options}
        for key, value in given.items():
            if key not in entry.options:
                with pytest.raises(
                    UserError, match=rf"{key}={re.escape(value)} is not allowed with loss.name={name}; it needs [^N]"
                ):
                    config.from_command_line([*words, f"{key}={value}"])


def test_an_unknown_loss_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"loss.name=info_ncee is unknown \(did you mean info_nce\?\)"):
        config.from_command_line(["data=pairs", "data.train=a", "data.test=b", "loss.name=info_ncee"])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_chooses_its_task_and_a_fitting_arm(name: str) -> None:
    made = config.from_command_line(["name=x", "data=pairs", "data.train=a", "data.test=b", f"loss.name={name}"])
    assert tasks.of(made) is TASKS[LOSSES[name].learns_from]
    assert LOSSES[name].learns_from in ARMS[made.arms[0]].tasks


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_says_how_it_comes_to_be_and_how_it_looks(name: str) -> None:
    arm = ARMS[name]
    assert (arm.head is not None) == (arm.origin in ("nested", "fixed"))
    assert (arm.compression is not None) == (arm.origin in ("compressed", "untuned"))
    assert (arm.reads is not None) == (arm.origin == "classical")
    assert arm.compression is None or arm.compression in {**COMPRESSIONS, **CODES}
    assert set(arm.tasks) <= TASKS.keys()
    others = [other for key, other in ARMS.items() if key != name]
    assert arm.label not in {other.label for other in others}
    assert arm.color not in {other.color for other in others}
    assert arm.marker not in {other.marker for other in others}


def test_all_stands_for_every_arm_that_suits_the_task() -> None:
    extra = {
        "mrl_distilled",
        "mrl_shortlist",
        "mrl_binary",
        "mrl_dims",
        "csr",
        "mrl_e_detached",
    }  # asked for by name
    assert set(arms.suited_to("classes")) == {*arms.TRAINED, *arms.POSTHOC} - extra
    assert set(arms.suited_to("pairs")) == set(arms.NAMES) - {"mrl_e"} - extra


def test_metrics_have_titles_of_their_own_and_those_compared_are_printed() -> None:
    every = [*METRICS.values(), *FAMILIES.values()]
    assert len({metric.title for metric in every}) == len(every)
    assert all(METRICS[name].printed for name in COMPARED)
