"""A bag of words: token embeddings pooled by weighted mean (and maximum), then, if asked for, a small MLP.

The default on a CPU.

    mean = Σ_t w_t e_t,   w the tf-idf weights of the text's distinct words, ‖w‖ = 1;  padding has weight 0
    max  = max_t w_t e_t over the words present
    z    = h,  or  P h + W_2 gelu(W_1 h)   with h = mean or (mean, max)

With mean pooling, no MLP and `hidden` = D the table of words is itself the last layer: FF(m) then trains its first m
columns. A text without a known word has h = 0.

The idea of pooling word vectors and classifying them is fastText's (Joulin et al., 2017, arXiv:1607.01759) and SWEM's
(Shen et al., 2018, arXiv:1805.09843), mean and max together as in the latter.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mrl_jax.errors import UserError


@dataclass(frozen=True)
class BagConfig:
    """A bag of words."""

    name: str = "bag"
    hidden: int | None = None  # width of the token embeddings; null: the embedding width D
    pooling: Literal["mean", "mean_max"] = "mean"
    mlp: int | None = None  # units of the hidden layer of a residual MLP; null: none
    word_dropout: float = 0.5  # share of the words of a text left out at each training step, in [0, 1)
    dropout: float = 0.0  # share of the coordinates of an embedding set to zero in training, in [0, 1)
    max_words: int = 192  # distinct words of a text that are read, the heaviest
    min_documents: int = 2  # training texts that a word must occur in to be known


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
        """Raises `UserError` for a value that no bag can have, or inputs that are no words."""
        if set(inputs) != {"ids", "weights"}:
            raise UserError(f"encoder=bag reads texts as ids and weights; the data has {', '.join(inputs)}")
        for key in ("word_dropout", "dropout"):
            if not 0 <= getattr(config, key) < 1:
                raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; 0 ≤ value < 1")
        for key in ("hidden", "mlp", "max_words", "min_documents"):
            if getattr(config, key) is not None and getattr(config, key) < 1:
                raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; at least 1")
        hidden = config.hidden or width
        pooled = hidden * (2 if config.pooling == "mean_max" else 1)
        self.config = config
        # Small, so that what is learnt soon outweighs the draw: with 0.1 the shortest prefixes lose points.
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocabulary, hidden)))
        plain = config.mlp is None and pooled == width
        self.projection = None if plain else nnx.Linear(pooled, width, use_bias=False, rngs=rngs)
        self.up = None if config.mlp is None else nnx.Linear(pooled, config.mlp, rngs=rngs)
        self.down = None if config.mlp is None else nnx.Linear(config.mlp, width, use_bias=False, rngs=rngs)

    def __call__(self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Embed a batch; `rngs` given means training."""
        weights_BxL = inputs["weights"]
        if rngs is not None and self.config.word_dropout > 0:
            weights_BxL = jnp.where(keep(weights_BxL.shape, self.config.word_dropout, rngs), weights_BxL, 0.0)
        norm_Bx1 = jnp.sqrt(jnp.sum(weights_BxL**2, axis=-1, keepdims=True))
        weights_BxL = weights_BxL / jnp.maximum(norm_Bx1, 1e-6)
        tokens_BxLxE = self.embedding[...][inputs["ids"]]
        h = jnp.einsum("bl,ble->be", weights_BxL, tokens_BxLxE)
        if self.config.pooling == "mean_max":
            present = weights_BxL[..., None] > 0
            largest = jnp.max(jnp.where(present, weights_BxL[..., None] * tokens_BxLxE, -jnp.inf), axis=1)
            h = jnp.concatenate([h, jnp.where(jnp.isfinite(largest), largest, 0.0)], axis=-1)
        z_BxD = h if self.projection is None else self.projection(h)
        if self.up is not None and self.down is not None:
            z_BxD = z_BxD + self.down(nnx.gelu(self.up(h)))
        if rngs is not None and self.config.dropout > 0:
            kept = keep(z_BxD.shape, self.config.dropout, rngs)
            z_BxD = jnp.where(kept, z_BxD / (1 - self.config.dropout), 0.0)
        return z_BxD


def keep(shape: tuple[int, ...], rate: float, rngs: nnx.Rngs) -> jax.Array:
    """A mask [B, n], true with probability 1 − `rate`.

    Drawn as [n, B]: with a counter-based generator a word's draw is then the same for any padding, and a coordinate's
    for any embedding width.
    """
    return jax.random.bernoulli(rngs.dropout(), 1 - rate, shape[::-1]).T
