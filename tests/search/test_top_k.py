"""What is looked for among all documents is selected, not sorted out: XLA on a CPU sorts where a top-k is sliced."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.evaluate import neighbours
from mrl_jax.losses import nested_distillation
from mrl_jax.search import exact, shortlist

DOCUMENTS = 4096


def sorted_lengths(function: Any, *arrays: Any, **options: Any) -> list[int]:
    """The lengths of the rows that the compiled function sorts."""
    text = jax.jit(function, static_argnames=tuple(options)).lower(*arrays, **options).compile().as_text()
    assert "TopK" in text or "topk" in text
    shapes = re.findall(r"= \(?\w+\[([\d,]*)\][^=]*? sort\(", text)
    return [int(shape.split(",")[-1]) for shape in shapes]


def test_the_sorting_of_a_sliced_top_k_would_be_noticed() -> None:
    scores = jnp.zeros((4, DOCUMENTS))
    assert sorted_lengths(lambda x: jax.lax.top_k(x, 10)[0], scores) == []
    assert DOCUMENTS in sorted_lengths(lambda x: (*jax.lax.top_k(x, 10), jax.lax.top_k(x, 10)[0][:, -1]), scores)


def test_no_search_sorts_the_scores_of_all_documents() -> None:
    rng = np.random.default_rng(0)
    queries, chunks = jnp.zeros((8, 16)), jnp.zeros((4, 16, DOCUMENTS // 4), jnp.bfloat16)
    per_row = jnp.zeros((4, DOCUMENTS // 4))
    lengths = sorted_lengths(shortlist._scan.__wrapped__, queries, chunks, per_row, per_row, dim=16, size=100, packed=1)
    lengths += sorted_lengths(
        exact._upper_bounds.__wrapped__, queries, jnp.zeros(8), chunks, per_row, per_row, dim=16, best_bins=40
    )
    lengths += sorted_lengths(neighbours.top_k, jnp.zeros((8, DOCUMENTS)), k=100)
    lengths += sorted_lengths(
        lambda q, d: nested_distillation(q, d, (8, 16), np.ones(2), neighbours=10)[0],
        jnp.asarray(rng.normal(size=(8, 16)), jnp.float32),
        jnp.asarray(rng.normal(size=(DOCUMENTS, 16)), jnp.float32),
    )
    assert max(lengths, default=0) < DOCUMENTS // 8
