"""The settings that arms try: draws, ranges, and what a user gets wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import config as configuration
from mrl_jax.config import space
from mrl_jax.config.space import Choice, Range
from mrl_jax.system.errors import UserError

R52 = "+experiment=reuters_r52"
SPACE = (
    "tune.space={optimizer.learning_rate: log 1e-4 3e-2, encoder.dropout: [0,0.2,.4], "
    "loss.label_smoothing: uniform 0 .2}"
)


def draws(*words: str) -> list[tuple[tuple[str, float], ...]]:
    return space.draws(configuration.from_command_line([R52, *words]))


def test_the_configured_settings_come_first() -> None:
    first = dict(draws("tune.trials=2", SPACE, "encoder.dropout=0.3", "optimizer.learning_rate=7e-3")[0])
    assert first == {"optimizer.learning_rate": 7e-3, "encoder.dropout": 0.3, "loss.label_smoothing": 0.0}


def test_a_draw_depends_on_seed_trial_and_key_alone() -> None:
    few, many = draws("tune.trials=3", SPACE), draws("tune.trials=9", SPACE)
    assert many[:4] == few
    alone = draws("tune.trials=3", "tune.space={optimizer.learning_rate: log 1e-4 3e-2}")
    assert [one[0] for one in few] == [one[0] for one in alone]
    assert draws("tune.trials=3", SPACE, "tune.seed=1")[1:] != few[1:]


def test_draws_fill_their_ranges_evenly() -> None:
    drawn = [dict(one) for one in draws("tune.trials=2000", SPACE)[1:]]
    rates = np.log([one["optimizer.learning_rate"] for one in drawn])
    low, high = math.log(1e-4), math.log(3e-2)
    shares = (rates - low) / (high - low)
    assert shares.min() >= 0
    assert shares.max() <= 1
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04)
    smoothing = [one["loss.label_smoothing"] for one in drawn]
    np.testing.assert_allclose(np.quantile(smoothing, [0.25, 0.5, 0.75]), [0.05, 0.1, 0.15], atol=0.01)
    values, counts = np.unique([one["encoder.dropout"] for one in drawn], return_counts=True)
    assert values.tolist() == [0, 0.2, 0.4]
    assert counts.min() > 590
    together = np.corrcoef(rates, smoothing)[0, 1]
    assert abs(together) < 0.07  # keys are drawn independently


@given(st.floats(0, 1, exclude_max=True), st.floats(1e-6, 1), st.floats(1.001, 1e6), st.booleans())
def test_a_range_stays_within_its_bounds(share: float, low: float, factor: float, log: bool) -> None:
    of = Range(low, low * factor, log)
    assert low * (1 - 1e-12) <= of.at(share) <= low * factor * (1 + 1e-12)
    assert Choice((low, low * factor)).at(share) in (low, low * factor)


def test_without_a_space_learning_rates_around_the_configured_one_are_tried() -> None:
    drawn = draws("tune.trials=50", "optimizer.learning_rate=1e-2")
    assert {key for one in drawn for key, _ in one} == {"optimizer.learning_rate"}
    assert all(1e-3 <= one[0][1] <= 1e-1 for one in drawn)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune.space={optimizer.learning_rate: [1e-3,1e-2]}"], "tune.space is not allowed with tune.trials=0"),
        (["tune.trials=2", "tune.space={}"], "is empty"),
        (
            ["tune.trials=2", "tune.space={optimizer.learning_rat: [1,2]}"],
            "did you mean optimizer.learning_rate",
        ),
        (["tune.trials=2", "tune.space={width: [32,64]}"], "--multirun width=…,…"),
        (["tune.trials=2", "tune.space={encoder.hidden: [32,64]}"], "a sweep tries it: --multirun encoder.hidden"),
        (["tune.trials=2", "tune.space={loss.temperature: [.1,.2]}"], "no effect in this run"),
        (["tune.trials=2", "tune.space={optimizer.learning_rate: log 1e-2 1e-4}"], "the lower bound comes first"),
        (["tune.trials=2", "tune.space={optimizer.learning_rate: log 1e-2 1e-2}"], "the lower bound comes first"),
        (["tune.trials=2", "tune.space={optimizer.weight_decay: log 0 1}"], "a logarithm needs bounds above 0"),
        (["tune.trials=2", "tune.space={optimizer.learning_rate: 1e-2}"], "values to choose from"),
        (["tune.trials=2", "tune.space={optimizer.learning_rate: geometric 1 2}"], "values to choose from"),
        (["tune.trials=2", "tune.space={optimizer.learning_rate: uniform 0 .1}"], "more than 0"),
        (["tune.trials=2", "tune.space={encoder.dropout: [.1,1.5]}"], "encoder.dropout cannot be 1.5; 0 ≤ value < 1"),
        (["tune.trials=2", "tune.space={encoder.dropout: [.1]}"], "two different numbers"),
        (["tune.trials=2", "tune.space={encoder.dropout: [.1,.1]}"], "each once"),
        (["tune.trials=2", "tune.space={optimizer.clip_norm: [1,null]}"], "null is not allowed; a finite number"),
        (["tune.trials=2", "tune.space={optimizer.clip_norm: [1,.inf]}"], "a finite number"),
        (["tune.trials=2", "tune.space={encoder.dropout: [a,b]}"], "a is not allowed; a finite number"),
        (["tune.trials=2", "tune.space=3"], "a mapping such as"),
        (["tune.trials=-1"], "tune.trials=-1 is not allowed; 0 to 10000"),
        (
            ["tune.trials=9", "tune.space={encoder.dropout: [0,.1,.2]}"],
            "beside the configured settings tune.space has 2",
        ),
        (["tune.trials=2", "tune.space={optimizer: {learning_rate: [1,2]}}"], "write optimizer.KEY: …, with a dot"),
        (["tune.trials=2", f"tune.space={{optimizer.learning_rate: [1,1{400 * '0'}]}}"], "a finite number"),
        (["tune.trials=1", "tune.space={loss.teacher_weight: [1,2]}"], "no effect in this run"),
        (
            ["arms=[mrl,mrl_distilled]", "tune.trials=1", "tune.space={loss.distillation: [0,1]}"],
            "is what makes arm mrl_distilled",
        ),
        (
            ["tune.trials=1", "tune.space={loss.distillation: [0,1]}", "loss.weights=[1,1,1,1,1,0]"],
            "tune.space: loss.distillation is not allowed with loss.weights",
        ),
        (
            ["arms=[mrl,mrl_distilled]", "loss.weights=[1,1,1,1,1,0]"],
            "arms=mrl_distilled is not allowed with loss.weights",
        ),
        (["tune.trial=2"], "tune.trial"),
        (["optimizer=sgd", "tune.trials=2", "tune.space={optimizer.adaptivity: [0,.5]}"], "no effect in this run"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as found:
        configuration.from_command_line([R52, *words])
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("word", ["tune.trials=2", "arms=[mrl,mrl_distilled]"])
def test_a_mixture_keeps_the_losses_of_its_sources(word: str) -> None:
    with pytest.raises(UserError, match="not for data=mixture"):
        configuration.from_command_line(["+experiment=mixture", word])


def test_lists_are_tried_without_repeats() -> None:
    drawn = draws("tune.trials=5", "tune.space={loss.label_smoothing: [0,.1], encoder.dropout: [.1,.2,.3]}")
    assert len({*drawn}) == 6
    assert draws("tune.trials=3", "tune.space={loss.label_smoothing: [0,.1], encoder.dropout: [.1,.2,.3]}") == drawn[:4]


def test_the_shortlist_of_an_arm_has_settings_too() -> None:
    words = ["arms=[mrl,mrl_shortlist]", "loss.shortlist_k=5", "tune.trials=1"]
    drawn = draws(*words, "tune.space={loss.shortlist_temperature: log .02 .5}")
    assert 0.02 <= dict(drawn[1])["loss.shortlist_temperature"] <= 0.5
    drawn = draws("tune.trials=1", "tune.space={loss.shortlist: log .1 1, loss.shortlist_temperature: log .02 .5}")
    assert 0.02 <= dict(drawn[1])["loss.shortlist_temperature"] <= 0.5


def test_a_linear_map_has_nothing_to_drop() -> None:
    words = ["data=features", "data.train=a.npy", "data.test=b.npy", "encoder.hidden=[]", "tune.trials=1"]
    with pytest.raises(UserError, match=r"encoder\.dropout has no effect"):
        configuration.from_command_line([*words, "tune.space={encoder.dropout: [0,.5]}"])
