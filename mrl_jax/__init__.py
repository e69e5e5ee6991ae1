"""Matryoshka (nested) embeddings in JAX: train them, compare them, use them."""

import importlib
from typing import TYPE_CHECKING, Any

from mrl_jax import losses, nesting
from mrl_jax.nesting import truncate

if TYPE_CHECKING:
    from mrl_jax.evaluate import cascade
    from mrl_jax.model import EmbeddingModel, load
    from mrl_jax.search import funnel
    from mrl_jax.zero_shot import mteb

__all__ = ["EmbeddingModel", "cascade", "funnel", "load", "losses", "mteb", "nesting", "truncate"]

MODULES = {
    "cascade": "mrl_jax.evaluate.cascade",
    "funnel": "mrl_jax.search.funnel",
    "mteb": "mrl_jax.zero_shot.mteb",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: the losses alone need neither the configuration nor the checkpoint library.
    if name in ("EmbeddingModel", "load"):
        from mrl_jax import model

        return getattr(model, name)
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    raise AttributeError(f"module 'mrl_jax' has no attribute {name!r}")
