"""The sigmoid loss of pairs at every prefix against a loop over its cells in float64, finite differences included."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.losses import Guide, TextIds, nested_sigmoid

WIDTH, DIMS = 8, (2, 5, 8)
WEIGHTS = np.array([0.5, 0.0, 2.0])
BIASES = np.array([-3.0, -2.0, -1.0])
RNG = np.random.default_rng(0)


def oracle(
    q: np.ndarray, d: np.ndarray, m: int, temperature: float, bias: float, left_out: Any = (), padding: Any = ()
) -> float:
    """The formula, one cell at a time; `left_out` are cells that do not count."""
    q, d = (np.float64(x[:, :m]) for x in (q, d))
    total = 0.0
    for i, query in enumerate(q):
        for j, document in enumerate(d):
            if i in padding or j in padding or (i, j) in left_out:
                continue
            length = np.linalg.norm(query) * np.linalg.norm(document)
            logit = (query @ document / length if length else 0.0) / temperature + bias
            total += np.log1p(np.exp(-logit if i == j else logit))
    return total / (len(q) - len(padding))


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)


@pytest.mark.parametrize(("batch", "candidates"), [(1, 1), (5, 5), (6, 9), (131, 140)])
def test_each_granularity_is_the_formula_and_the_total_their_weighted_sum(batch: int, candidates: int) -> None:
    """131 queries are more than a tile, and fill no two."""
    q, d = vectors(batch, 1), vectors(candidates, 2)
    q[0, :2] = 0  # a prefix without a direction: its cosines are 0
    total, losses_K = nested_sigmoid(q, d, DIMS, WEIGHTS, 0.2, jnp.asarray(BIASES))
    wanted = [oracle(q, d, m, 0.2, b) for m, b in zip(DIMS, BIASES, strict=True)]
    np.testing.assert_allclose(losses_K, wanted, rtol=1e-5)
    assert float(total) == pytest.approx(WEIGHTS @ wanted, rel=1e-5)


def test_gradients_are_finite_differences_of_the_formula() -> None:
    q, d, tau, step = vectors(3, 3), vectors(4, 4), 0.3, 1e-5

    def wanted(q: Any, d: Any, tau: Any, biases: Any) -> float:
        return sum(w * oracle(q, d, m, tau, b) for w, m, b in zip(WEIGHTS, DIMS, biases, strict=True))

    def loss(q: Any, d: Any, tau: Any, biases: Any) -> jax.Array:
        return nested_sigmoid(q, d, DIMS, WEIGHTS, tau, biases)[0]

    given = [np.array(x, np.float64) for x in (q, d, tau, BIASES)]
    found = jax.grad(loss, argnums=(0, 1, 2, 3))(*(jnp.asarray(x, jnp.float32) for x in given))
    for place, gradient in enumerate(found):
        for at in np.ndindex(given[place].shape):
            values = []
            for sign in (1, -1):
                moved = [x.copy() for x in given]
                moved[place][at] += sign * step
                values.append(wanted(*moved))
            assert float(gradient[at]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-3, abs=2e-4)


def test_texts_that_are_known_to_be_relevant_count_neither_way() -> None:
    """Queries 0 and 2 are one text; document 3 stands for document 1, too; document 4 is known to answer query 1."""
    ids = TextIds(np.array([7, 8, 7]), np.array([20, 21, 22, 21, 24]), np.array([[-1], [24], [-1]]))
    left_out = {(0, 2), (2, 0), (1, 3), (1, 4)}
    q, d = vectors(3, 5), vectors(5, 6)
    _, losses_K = nested_sigmoid(q, d, DIMS, WEIGHTS, 0.2, -2.0, ids=ids)
    np.testing.assert_allclose(losses_K, [oracle(q, d, m, 0.2, -2.0, left_out) for m in DIMS], rtol=1e-5)


def test_what_a_guide_finds_nearer_than_the_positive_is_no_negative() -> None:
    q, d = vectors(4, 7), vectors(6, 8)
    of_guide = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors(4, 9), vectors(6, 10))]
    cosines = of_guide[0] @ of_guide[1].T
    left_out = {(i, j) for i in range(4) for j in range(6) if i != j and cosines[i, j] > cosines[i, i] - 0.1}
    assert left_out
    _, losses_K = nested_sigmoid(q, d, DIMS, WEIGHTS, 0.2, -2.0, guide=Guide(*map(jnp.asarray, of_guide), 0.1))
    np.testing.assert_allclose(losses_K, [oracle(q, d, m, 0.2, -2.0, left_out) for m in DIMS], rtol=1e-5)


def test_padding_does_not_count_and_gets_no_gradient() -> None:
    q, d, valid = vectors(4, 11), vectors(4, 12), np.array([True, False, True, True])
    (_, losses_K), gradient = jax.value_and_grad(
        lambda q: nested_sigmoid(q, d, DIMS, WEIGHTS, 0.2, -2.0, valid=valid), has_aux=True
    )(q)
    np.testing.assert_allclose(losses_K, [oracle(q, d, m, 0.2, -2.0, padding={1}) for m in DIMS], rtol=1e-5)
    assert np.all(np.any(gradient, axis=1) == valid)


def test_memory_does_not_grow_with_the_number_of_cells() -> None:
    """Of 4,096 × 4,096 cells at 4 dims, whose logits alone would take 256 MiB."""
    shape = jax.ShapeDtypeStruct((4096, 16), jnp.float32)

    def step(q: Any, d: Any) -> Any:
        return jax.grad(lambda q, d: nested_sigmoid(q, d, (2, 4, 8, 16), np.ones(4))[0], argnums=(0, 1))(q, d)

    memory = jax.jit(step).lower(shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"bias": jnp.zeros(2)}, r"bias must be one number or \[3\], one per dim; got shape \(2,\)"),
        ({"valid": np.ones(3, bool)}, r"valid must be \[4\]"),
        ({"documents_NxD": vectors(3, 1)}, "4 queries need as many documents, the positives first; got 3"),
        ({"dims": (5, 2, 8)}, "dims"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    given = {"queries_BxD": vectors(4, 1), "documents_NxD": vectors(5, 2), "dims": DIMS, "weights": WEIGHTS}
    with pytest.raises(ValueError, match=message):
        nested_sigmoid(**{**given, **change})
