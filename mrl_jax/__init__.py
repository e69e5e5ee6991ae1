"""Matryoshka (nested) embeddings in JAX: train them, compare them, use them."""

from typing import TYPE_CHECKING, Any

from mrl_jax import losses, nesting

if TYPE_CHECKING:
    from mrl_jax.model import EmbeddingModel, load

__all__ = ["EmbeddingModel", "load", "losses", "nesting"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the losses alone need neither the configuration nor the checkpoint library.
    if name in ("EmbeddingModel", "load"):
        from mrl_jax import model

        return getattr(model, name)
    raise AttributeError(f"module 'mrl_jax' has no attribute {name!r}")
