"""Gradients of a loss that couples all examples of a batch, for batches whose activations exceed memory."""

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
    """The gradient of a loss that couples all examples of a batch, holding the activations of one chunk at a time.

    Every chunk is embedded without storing its activations, the loss is differentiated with respect to the embeddings,
    and each chunk is embedded once more to propagate that gradient to the parameters (Gao et al., 2021,
    arXiv:2101.06983). The sum is exactly the gradient of the whole batch; it costs one more forward pass.

    Args:
        embed: `(params, chunk) -> embeddings`, a pytree of arrays [n, …]. It is called twice per chunk and must return
            the same values: keys of random masks belong in the chunk.
        loss: `(params, embeddings) -> (scalar, aux)`, the embeddings stacked [chunks, n, …]. Parameters that the
            loss reads directly, such as a learned temperature, get their gradient too.
        params: pytree of float arrays.
        chunks: pytree of arrays [chunks, n, …].

    Returns:
        The gradient with respect to `params`, a pytree like it, and aux.
    """
    embeddings = jax.lax.map(lambda chunk: embed(params, chunk), chunks)
    gradients, aux = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, embeddings)
    params_gradient, embeddings_gradient = gradients

    def step(total: Tree, inputs: tuple[Any, Any]) -> tuple[Tree, None]:
        chunk, cotangents = inputs
        _, pull_back = jax.vjp(lambda params: embed(params, chunk), params)
        return jax.tree.map(jnp.add, total, pull_back(cotangents)[0]), None

    return jax.lax.scan(step, params_gradient, (chunks, embeddings_gradient))[0], aux
