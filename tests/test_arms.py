"""An arm is a row of loss weights; a population, a set of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import arms
from mrl_jax.arms import Arm, Member
from mrl_jax.system.errors import UserError

DIMS = (8, 16, 32)
KINDS = ("separate", "tied")


def test_the_nested_arms_weigh_every_granularity_of_their_own_kind_of_head():
    mrl, mrl_e = arms.expand(["mrl", "mrl_e"], DIMS)
    np.testing.assert_array_equal(mrl.row(KINDS).weights, [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(mrl_e.row(KINDS).weights, [[0, 0, 0], [1, 1, 1]])
    assert mrl.trained(DIMS) == mrl_e.trained(DIMS) == DIMS


def test_ff_stands_for_one_fixed_size_model_at_each_dim():
    fixed = arms.expand(["ff"], DIMS)
    assert [arm.label for arm in fixed] == ["ff8", "ff16", "ff32"]
    assert [arm.width for arm in fixed] == [8, 16, 32]
    assert [arm.trained(DIMS) for arm in fixed] == [(8,), (16,), (32,)]
    for k, arm in enumerate(fixed):
        np.testing.assert_array_equal(arm.row(KINDS).weights, [np.eye(3)[k], np.zeros(3)])
        assert not arm.row(KINDS).sampled


def test_all_stands_for_every_arm_once():
    everything = arms.expand(["all"], DIMS)
    assert [arm.label for arm in everything] == ["mrl", "mrl_e", "mrl_sampled", "ff8", "ff16", "ff32"]
    assert arms.expand(["mrl", "all", "mrl"], DIMS) == everything


@given(st.lists(st.sampled_from(arms.TRAINED), min_size=1))
def test_an_arm_named_twice_is_trained_once_and_the_order_is_kept(names):
    labels = [arm.label for arm in arms.expand(names, (4,))]
    assert labels == [{"ff": "ff4"}.get(name, name) for name in dict.fromkeys(names)]


def test_relative_importance_applies_to_nested_arms_and_not_to_fixed_ones():
    mrl, *fixed = arms.expand(["mrl", "ff"], DIMS, weights=[0.5, 0.0, 2.0])
    assert mrl.weights == (0.5, 0.0, 2.0)
    assert mrl.trained(DIMS) == (8, 32)
    assert [arm.weights for arm in fixed] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_the_sampled_arm_differs_from_mrl_only_in_its_flag():
    mrl, sampled = (arm.row(KINDS) for arm in arms.expand(["mrl", "mrl_sampled"], DIMS))
    np.testing.assert_array_equal(mrl.weights, sampled.weights)
    assert (bool(mrl.sampled), bool(sampled.sampled)) == (False, True)


def test_post_hoc_arms_are_not_trained_and_need_the_models_that_they_compress():
    assert arms.expand(["pca", "truncated"], DIMS) == ()
    assert arms.posthoc(["pca", "ff", "truncated", "pca"]) == ("truncated", "pca")
    assert arms.posthoc(["all"]) == tuple(name for name in arms.POSTHOC if arms.ARMS[name].in_all)
    assert arms.posthoc(["mrl"]) == ()
    with pytest.raises(UserError, match="lacks ff: the full-width fixed-size model is what pca compresses; add it"):
        arms.posthoc(["mrl", "pca"])
    with pytest.raises(UserError, match="lacks mrl: the full-width nested model is what mrl_pca compresses; add it"):
        arms.posthoc(["ff", "mrl_pca"])


def test_a_post_hoc_arm_is_made_of_the_full_width_of_one_arm():
    names = ["mrl", "mrl_sampled", "ff", "pca", "mrl_pca"]
    made = {arm.label: arms.made_of(arm, names, DIMS[-1]) for arm in arms.expand(names, DIMS)}
    assert made == {"mrl": ("mrl_pca",), "mrl_sampled": (), "ff8": (), "ff16": (), "ff32": ("pca",)}
    assert {arms.ARMS[name].compresses for name in arms.POSTHOC} == set(arms.COMPRESSED) <= set(arms.TRAINED)


def test_an_unknown_arm_is_refused_with_the_nearest_name():
    with pytest.raises(
        UserError, match=r"arms=mlr is unknown \(did you mean mrl\?\); allowed: mrl, mrl_e, .*pca.*, all"
    ):
        arms.expand(["mlr"], DIMS)


@pytest.mark.parametrize(
    ("names", "needed"),
    [(["mrl"], ("separate",)), (["ff"], ("separate",)), (["mrl_e"], ("tied",)), (["mrl_e", "mrl"], KINDS)],
)
def test_a_population_holds_only_the_heads_that_its_arms_read(names, needed):
    chosen = arms.expand(names, DIMS)
    assert arms.kinds(chosen) == needed
    assert all(arm.row(needed).weights.shape == (len(needed), len(DIMS)) for arm in chosen)


def test_a_member_is_named_after_its_arm_and_seed():
    assert Member(Arm("ff", "separate", (0.0, 1.0), 16), 3).label == "ff16-seed3"


def test_an_arm_with_a_setting_has_a_counterpart_with_the_same_head() -> None:
    assert {name: other for name in arms.ARMS if (other := arms.counterpart(name))} == {
        "mrl_distilled": "mrl", "mrl_shortlist": "mrl", "mrl_e_detached": "mrl_e",
        "mrl_binary": "mrl",
    }  # fmt: skip
