"""Gradients of a loss that couples a whole batch, where the batch is larger than memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def cached_gradient(
    embed: Callable[[Tree, Any], Any],
    loss: Callable[[Tree, Any], tuple[jax.Array, Any]],
    params: Tree,
    chunks: Any,
) -> tuple[Tree, Any]:
    """The gradient of a loss that couples all examples of a batch, with the activations of one chunk at a time.

    Every chunk is embedded without keeping its activations, the loss is differentiated at the embeddings, and then each
    chunk is embedded once more to carry that gradient on to the parameters (Gao et al., 2021, arXiv:2101.06983). The
    sum is the gradient of the whole batch, not an approximation; it costs one more forward pass.

    Args:
        embed: `(params, chunk) -> embeddings`, a pytree of arrays [n, …]. The same both times for the same chunk: keys
            of random masks belong into the chunk.
        loss: `(params, embeddings) -> (scalar, aux)`, the embeddings stacked [chunks, n, …]. What it takes from
            `params` itself, such as a learned temperature, gets its gradient too.
        params: pytree of float arrays.
        chunks: pytree of arrays [chunks, n, …].

    Returns:
        The gradient with respect to `params`, and aux.
    """
    embeddings = jax.lax.map(lambda chunk: embed(params, chunk), chunks)
    gradients, aux = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, embeddings)
    of_params, of_embeddings = gradients

    def step(total: Tree, inputs: tuple[Any, Any]) -> tuple[Tree, None]:
        chunk, cotangents = inputs
        _, pull_back = jax.vjp(lambda params: embed(params, chunk), params)
        return jax.tree.map(jnp.add, total, pull_back(cotangents)[0]), None

    return jax.lax.scan(step, of_params, (chunks, of_embeddings))[0], aux
