"""Linear classifiers on prefixes: a head a granularity (MRL), or one tied head for all of them (MRL-E).

A population of arms trains both kinds in one program: the loss weights of an arm are a row of `K` entries for each
kind, and a kind with zero weights gets zero gradient (see `arms.py`).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax.nesting import nested_logits

KINDS = ("separate", "tied")

# separate: K kernels [m_k, C] and K biases [C]; tied: the K blocks of rows of one kernel [D, C], and one bias [C]
Head = dict[str, Any]


def init(key: jax.Array, kind: str, dims: Sequence[int], classes: int) -> Head:
    """Zero biases and normal kernels of standard deviation 1/√m, m the width that the head reads.

    The separate head of granularity k starts as the first m_k rows of one shared [D, C] draw, rescaled to its own
    width, so that a model of width m_k can be started from the same numbers.
    """
    draw = jax.random.normal(key, (dims[-1], classes), jnp.float32)
    if kind == "tied":
        return {"kernel": jnp.split(draw / jnp.sqrt(dims[-1]), dims[:-1]), "bias": jnp.zeros(classes)}
    return {"kernel": [draw[:m] / jnp.sqrt(m) for m in dims], "bias": [jnp.zeros(classes) for _ in dims]}


def logits(head: Head, kind: str, z_BxD: jax.Array, dims: Sequence[int]) -> tuple[jax.Array, ...]:
    """K arrays [B, C]. A tied head takes any `dims`; separate heads only those that they were made for."""
    if kind == "tied":
        made_for = tuple(itertools.accumulate(len(rows) for rows in head["kernel"]))
        kernel = head["kernel"] if tuple(dims) == made_for else jnp.concatenate(head["kernel"])
        return nested_logits(z_BxD, kernel, dims, head["bias"])
    return tuple(
        jnp.matmul(z_BxD[:, :m], kernel, preferred_element_type=jnp.float32) + bias
        for m, kernel, bias in zip(dims, head["kernel"], head["bias"], strict=True)
    )


def classifiers(head: Head, kind: str, dims: Sequence[int], wanted: Sequence[int]) -> dict[int, tuple[Any, Any]]:
    """For each of the `wanted` dims that the head can read, its kernel [m, C] and bias [C].

    A tied head reads any prefix; separate heads only those that they were made for, `dims`.
    """
    if kind == "tied":
        kernel = jnp.concatenate(head["kernel"])
        return {m: (kernel[:m], head["bias"]) for m in wanted}
    made = dict(zip(dims, zip(head["kernel"], head["bias"], strict=True), strict=True))
    return {m: made[m] for m in wanted if m in made}
