"""`loss.binary`: pairs whose documents are signs, so that prefixes are trained for one bit per coordinate."""

from pathlib import Path

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import config, evaluate, losses
from mrl_jax.config import LossConfig
from mrl_jax.evaluate import quantised, ranking
from mrl_jax.losses import nested_info_nce
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.pair_objectives import ContrastiveObjective
from mrl_jax.tasks.pairs import Judged

DIMS, WIDTH, B = (2, 4, 8), 8, 6
ONES = jnp.ones((1, len(DIMS)))
Z = jnp.asarray(np.random.default_rng(0).normal(size=(3 * B, WIDTH)), jnp.float32)
FLOATS = st.floats(-8, 8, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


@given(z=arrays.arrays(np.float32, (3, 5), elements=FLOATS), m=st.integers(1, 5))
def test_signs_are_those_that_are_stored_and_the_gradient_is_that_of_the_identity(z: np.ndarray, m: int) -> None:
    signs, pull = jax.vjp(losses.straight_through_signs, z)
    bits = np.unpackbits(quantised.to_bits(z), axis=1)[:, :5]
    scale = np.abs(z.astype(np.float64)).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(signs, (2.0 * bits - 1) * scale, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(pull(z)[0], z)
    cut = np.asarray(losses.straight_through_signs(z[:, :m]))
    np.testing.assert_array_equal(
        np.sign(np.round(cut, 4)), np.sign(np.round(np.asarray(signs)[:, :m], 4)) * (cut != 0)
    )


def test_documents_are_signs_and_queries_are_not() -> None:
    """With hard negatives; the value against the loss of signs made by NumPy."""
    plain, _ = nested_info_nce(Z[:B], Z[B:], DIMS, ONES[0], 0.05)
    signs = jnp.asarray(np.where(np.asarray(Z[B:]) > 0, 1.0, -1.0), jnp.float32)
    stored, _ = nested_info_nce(Z[:B], signs, DIMS, ONES[0], 0.05)
    objective = ContrastiveObjective(DIMS, 3, LossConfig("info_nce", binary=0.7))
    np.testing.assert_allclose(objective.loss({}, Z, jnp.zeros(B), ONES)[0], plain + 0.7 * stored, rtol=1e-5)


def test_training_on_signs_ranks_signs_better() -> None:
    """Gradient descent on free embeddings of 64 pairs: all of them rank right, by float32 in either case."""
    start = jnp.asarray(np.random.default_rng(1).normal(size=(2 * 64, 32)), jnp.float32)
    judgments = np.stack([np.arange(64), np.arange(64), np.ones(64, int)], axis=1)
    found = []
    for weight in (0.0, 1.0):
        objective = ContrastiveObjective((8, 32), 2, LossConfig("info_nce", binary=weight))
        step = jax.jit(jax.grad(lambda z, one=objective: one.loss({}, z, jnp.zeros(64), jnp.ones((1, 2)))[0]))
        z = start
        for _ in range(300):
            z = z - 0.3 * step(z)
        scores = Judged(np.asarray(z[:64]), np.asarray(z[64:]), judgments).scores((8, 32), is_quantised=True)
        found.append({(s.metric, s.dim): s.value for s in scores})
    assert min(one["ndcg@10", 8] for one in found) > 0.99
    assert found[0]["bit_ndcg@10", 8] < 0.9
    assert found[1]["bit_ndcg@10", 8] > 0.99


def test_quantised_search_scores_the_rankings_of_quantised_documents() -> None:
    rng = np.random.default_rng(2)
    queries, documents = (rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 40))
    judgments = np.array([[q, 3 * q + i, i + 1] for q in range(5) for i in range(2)])
    own = np.array([[0, 1]])
    found = {(s.metric, s.dim): s.value for s in evaluate.search(queries, documents, judgments, DIMS, own, True)}
    for kind, find in quantised.KINDS.items():
        for dim in DIMS:
            (rows,) = find(queries[:, :dim].copy(), documents[:, :dim].copy(), (dim,), 40)
            rows = [[d for d in row if (q, d) != (0, 1)] for q, row in enumerate(rows.tolist())]
            gains = [
                [{(int(a), int(b)): int(g) for a, b, g in judgments}.get((q, d), 0) for d in row]
                for q, row in enumerate(rows)
            ]
            best = [sorted((int(g) for a, _, g in judgments if a == q), reverse=True) for q in range(5)]
            ndcg = [
                sum(g / np.log2(i + 2) for i, g in enumerate(row[:10]))
                / sum(g / np.log2(i + 2) for i, g in enumerate(top))
                for row, top in zip(gains, best, strict=True)
            ]
            assert found[f"{kind}_ndcg@10", dim] == pytest.approx(np.mean(ndcg), abs=1e-6)
    assert {metric for metric, _ in found} == {f"{kind}{m}" for kind in ("", "int8_", "bit_") for m in ranking.METRICS}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss.binary=-1"], "loss.binary=-1"),
        (["data=newsgroups", "loss.binary=1"], "loss.binary=1 is not allowed with loss.name=cross_entropy"),
        (["data=newsgroups", "arms=[mrl_binary]"], "arms=mrl_binary is not allowed with loss.name=cross_entropy"),
        (
            ["data=stsb", "loss.name=cosent", "arms=[mrl_binary]"],
            "arms=mrl_binary is not allowed with loss.name=cosent",
        ),
        (
            ["data=newsgroups", "evaluation.quantised_search=true"],
            "evaluation.quantised_search=true is not allowed with loss.name=cross_entropy",
        ),
        (
            ["arms=[mrl_binary]", "loss.teacher=minilm", "loss.supervised=false"],
            "arms=mrl_binary is not allowed with loss.supervised=false",
        ),
    ],
)
def test_a_setting_that_does_nothing_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    pairs = ["data=pairs", "data.train=a.jsonl", "data.test=b.jsonl", "loss.name=info_nce"]
    with pytest.raises(UserError, match=said):
        config.from_command_line(["name=x", *(words if "data" in words[0] else [*pairs, *words])])
