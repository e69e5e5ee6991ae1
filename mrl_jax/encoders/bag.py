"""A bag of words: weighted mean (and optionally max) of token embeddings, then a small residual MLP. The CPU default.

    mean = Σ_t w_t e_t,  w the tf-idf weights of the text's distinct words, ‖w‖ = 1;  padding has weight 0.

The idea of pooling word vectors and classifying them is fastText's (Joulin et al., 2017, arXiv:1607.01759) and SWEM's
(Shen et al., 2018, arXiv:1805.09843).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True)
class BagConfig:
    name: str = "bag"
    hidden: int | None = None  # width of the token embeddings; null: the embedding width
    word_dropout: float = 0.3  # share of the words of a text left out at each training step
    max_words: int = 192  # distinct words of a text that are read, the heaviest
    min_documents: int = 2  # training texts that a word must occur in
    pooling: Literal["mean", "mean_max"] = "mean"


class Bag(nnx.Module):
    """inputs: `ids` int32 [B, L], `weights` float32 [B, L] (0 = padding) → float32 [B, D]."""

    def __init__(
        self,
        config: BagConfig,
        *,
        inputs: dict[str, tuple[int, ...]],
        vocabulary: int,
        width: int,
        rngs: nnx.Rngs,
    ) -> None:
        del inputs
        self.config = config
        hidden = config.hidden or width
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (vocabulary, hidden)) * 0.1)

    def __call__(self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None) -> jax.Array:
        weights_BxL = inputs["weights"]
        if rngs is not None and self.config.word_dropout > 0:
            # Drawn as [L, B]: with a counter-based generator a word's draw is then the same for any padding.
            keep_LxB = jax.random.bernoulli(rngs.dropout(), 1 - self.config.word_dropout, weights_BxL.shape[::-1])
            weights_BxL = jnp.where(keep_LxB.T, weights_BxL, 0.0)
        norm = jnp.linalg.norm(weights_BxL, axis=-1, keepdims=True)
        weights_BxL = weights_BxL / jnp.maximum(norm, 1e-6)
        tokens_BxLxE = self.embedding[...][inputs["ids"]]
        return jnp.einsum("bl,ble->be", weights_BxL, tokens_BxLxE)
