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
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.encoders.base import EncoderConfig, rotate_layers
from mrl_jax.encoders.onnx_graph import Graph, as_float32
from mrl_jax.rows import is_zero
from mrl_jax.system.errors import UserError, limited
from mrl_jax.text import ngrams
from mrl_jax.text.ngrams import MAX_LENGTH
from mrl_jax.text.tokenizers import Texts, TfidfWords


@dataclass(frozen=True)
class BagConfig(EncoderConfig):
    """A bag of words."""

    name: str = "bag"
    hidden: int | None = None  # width of the token embeddings; null: the embedding width D
    pooling: Literal["mean", "mean_max"] = "mean"  # of the words: weighted mean, or mean and maximum side by side
    mlp: int | None = None  # units of the hidden layer of a residual MLP; null: none
    word_dropout: float = 0.5  # share of a text's words left out at each training step, in [0, 1)
    dropout: float = 0.0  # share of an embedding's coordinates set to zero in training, in [0, 1)
    max_words: int = 192  # maximum number of distinct words per text, the heaviest by tf-idf
    min_documents: int = 2  # minimum number of training texts that a word of the vocabulary occurs in
    units: Literal["words", "characters"] = "words"  # what is counted (in scripts without spaces, words are characters)
    ngrams: int = limited(1, f"1 to {MAX_LENGTH}", lambda n: 1 <= n <= MAX_LENGTH)  # units per run that counts, too


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
        """Raises `UserError` for a setting out of range, or inputs that are not words."""
        if set(inputs) != {"ids", "weights"}:
            raise UserError(f"encoder={config.name} reads texts as ids and weights; the data has {', '.join(inputs)}")
        for key in ("word_dropout", "dropout"):
            if not 0 <= getattr(config, key) < 1:
                raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; 0 ≤ value < 1")
        for key in ("hidden", "mlp", "max_words", "min_documents"):
            if getattr(config, key) is not None and getattr(config, key) < 1:
                raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; at least 1")
        hidden = config.hidden or width
        pooled = hidden * (2 if config.pooling == "mean_max" else 1)
        self.config = config
        self.word_dropout, self.dropout = config.word_dropout, config.dropout
        # Small, so that what is learnt soon outweighs the draw: with 0.1 the shortest prefixes lose points.
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocabulary, hidden)))
        plain = config.mlp is None and pooled == width
        self.projection = None if plain else nnx.Linear(pooled, width, use_bias=False, rngs=rngs)
        self.up = None if config.mlp is None else nnx.Linear(pooled, config.mlp, rngs=rngs)
        self.down = None if config.mlp is None else nnx.Linear(config.mlp, width, use_bias=False, rngs=rngs)

    def __call__(self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Embed a batch; `rngs` given means training."""
        weights_BxL = inputs["weights"]
        if rngs is not None and not is_zero(self.word_dropout):
            weights_BxL = jnp.where(keep(weights_BxL.shape, self.word_dropout, rngs), weights_BxL, 0.0)
        weights_BxL = self.scale(weights_BxL)
        tokens_BxLxE = self.embedding[...][inputs["ids"]]
        h = jnp.einsum("bl,ble->be", weights_BxL, tokens_BxLxE)
        if self.config.pooling == "mean_max":
            present = weights_BxL[..., None] > 0
            largest = jnp.max(jnp.where(present, weights_BxL[..., None] * tokens_BxLxE, -jnp.inf), axis=1)
            h = jnp.concatenate([h, jnp.where(jnp.isfinite(largest), largest, 0.0)], axis=-1)
        z_BxD = h if self.projection is None else self.projection(h)
        if self.up is not None and self.down is not None:
            z_BxD = z_BxD + self.down(nnx.gelu(self.up(h)))
        if rngs is not None and not is_zero(self.dropout):
            mask_BxD = keep(z_BxD.shape, self.dropout, rngs)
            z_BxD = jnp.where(mask_BxD, z_BxD / (1 - self.dropout), 0.0)
        return z_BxD

    @staticmethod
    def scale(weights_BxL: jax.Array) -> jax.Array:
        """The weights of each text, of unit length."""
        norm_Bx1 = jnp.sqrt(jnp.sum(weights_BxL**2, axis=-1, keepdims=True))
        return weights_BxL / jnp.maximum(norm_Bx1, 1e-6)


def keep(shape: tuple[int, ...], rate: float | jax.Array, rngs: nnx.Rngs) -> jax.Array:
    """A mask [B, n] of what dropout keeps, true with probability 1 − `rate`.

    Drawn as [n, B]: with a counter-based generator the draw of a word is then the same for any padding, and that of a
    coordinate for any embedding width.
    """
    return jax.random.bernoulli(rngs.dropout(), 1 - rate, shape[::-1]).T


def rotate(config: BagConfig, parameters: Any, rotation: np.ndarray) -> tuple[BagConfig, Any] | None:
    """The last layers rotated: the projection and what the MLP adds to it, or the table of words, if they are pooled by
    their mean alone."""
    if "projection" not in parameters and config.pooling != "mean":
        return None
    names = [name for name in ("projection", "down") if name in parameters] or ["embedding"]
    return config, rotate_layers(parameters, names, rotation)


def fit_preprocessor(kind: str, texts: Texts, **settings: Any) -> TfidfWords:
    """Learn the vocabulary and its idf."""
    del kind  # text
    return TfidfWords.fit(texts, **settings)


def load_preprocessor(config: BagConfig, directory: Path, kind: str) -> TfidfWords:
    """The vocabulary and its idf, as saved with a run."""
    del kind  # text
    return TfidfWords.load(directory, max_words=config.max_words, ngrams=config.ngrams)


def heaviest_words(words: TfidfWords, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What `TfidfWords` makes of a text, from all of its token ids: its heaviest words by (1 + ln tf) · idf.

    O(B·V) memory. Ties go to the smaller id in both. The weights are not of unit length yet; `Bag` scales them.

    Args:
        words: the preprocessor.
        arrays: `input_ids` and `attention_mask`, int [B, L].

    Returns:
        `ids` int32 and `weights` float32 [B, min(max_words, V)]; weight 0 where a text has fewer words.
    """
    ids_BxL, mask_BxL, idf_V = arrays["input_ids"], arrays["attention_mask"], jnp.asarray(words.idf)
    units, masks = [ids_BxL], [mask_BxL > 0]
    # Runs begin at every place, those that would end beyond the text with a padding: the length may be symbolic.
    padded, known = (jnp.pad(x, ((0, 0), (0, words.ngrams - 1))) for x in (ids_BxL, (ids_BxL > 0) & (mask_BxL > 0)))
    for n in range(2, words.ngrams + 1):
        run = ngrams.is_run(padded, known, n, words.space)
        units.append(jnp.asarray(words.id_of_bucket)[ngrams.buckets(padded.astype(jnp.uint32), n)])
        masks.append(run)
    ids_BxL, mask_BxL = jnp.concatenate(units, axis=1), jnp.concatenate(masks, axis=1)
    rows = jnp.arange(ids_BxL.shape[0])[:, None]
    tf_BxV = jnp.zeros((ids_BxL.shape[0], len(idf_V))).at[rows, ids_BxL].add(mask_BxL.astype(jnp.float32))
    weights_BxV = jnp.where(tf_BxV > 0, (1 + jnp.log(jnp.maximum(tf_BxV, 1))) * idf_V, 0)
    weights, ids = jax.lax.top_k(weights_BxV, min(words.max_words, len(idf_V)))
    return {"ids": ids, "weights": weights}


def _onnx_runs(g: Graph, words: TfidfWords) -> tuple[str, str]:
    """The ids of the units and of their runs [B, n] and a float mask of those that count: `ngrams` in ONNX."""
    mask = g.cast("attention_mask", "float")
    if words.ngrams == 1:
        return "input_ids", mask
    ids = g.cast("input_ids", "int64")
    known = g("Mul", mask, g.cast(g("Greater", ids, np.int64(0)), "float"))
    within = g("Mul", known, g.cast(g("Not", g("Equal", ids, np.int64(words.space or -1))), "float"))
    all_ids, masks = [ids], [mask]
    table = g.constant(words.id_of_bucket.astype(np.int64))
    for n in range(2, words.ngrams + 1):

        def part(x: str, k: int, n: int = n) -> str:
            return g("Slice", x, np.array([k]), np.array([k - n + 1 or np.iinfo(np.int64).max]), np.array([1]))

        h, run = g("Add", g("Mul", part(ids, 0), np.int64(0)), np.int64(n)), part(known, 0)
        for k in range(n):
            h = g("Mod", g("Add", g("Mul", h, np.int64(ngrams.P)), part(ids, k)), np.int64(ngrams.MODULUS))
            run = g("Mul", run, part(within if 0 < k < n - 1 else known, k)) if k else run
        bucket = g("Div", g("Mod", g("Mul", h, np.int64(ngrams.Q)), np.int64(ngrams.MODULUS)), np.int64(1 << 12))
        all_ids.append(g("Gather", table, bucket))
        masks.append(run)
    return g("Concat", *all_ids, axis=1), g("Concat", *masks, axis=1)


def onnx(g: Graph, config: BagConfig, words: TfidfWords, parameters: Any) -> str:
    """`heaviest_words`, with its logarithm in float64, and `Bag` in evaluation, as an ONNX graph."""
    shape = g("Concat", g("Shape", "input_ids", start=0, end=1), [words.vocabulary], axis=0)
    units, mask = _onnx_runs(g, words)
    counts = g("ScatterElements", g("Expand", 0.0, shape), units, mask, axis=1, reduction="add")
    tf = g("Add", g("Log", g.cast(g("Max", counts, 1.0), "double")), np.ones(1))
    tf_idf = g.cast(g("Mul", tf, words.idf.astype(np.float64)), "float")
    tf_idf = g("Where", g("Greater", counts, 0.0), tf_idf, 0.0)
    weights, ids = g.several(2, "TopK", tf_idf, [min(words.max_words, words.vocabulary)])
    norm = g("ReduceL2", weights, axes=[-1], keepdims=1)
    weights = g("Unsqueeze", g("Div", weights, g("Max", norm, 1e-6)), [2])
    weighted = g("Mul", weights, g("Gather", as_float32(parameters["embedding"]), ids))
    h = g("ReduceSum", weighted, [1], keepdims=0)
    if config.pooling == "mean_max":
        present = g("Greater", weights, 0.0)
        largest = g("ReduceMax", g("Where", present, weighted, -np.inf), axes=[1], keepdims=0)
        h = g("Concat", h, g("Where", g("Equal", largest, -np.inf), 0.0, largest), axis=1)
    z = g.linear(h, parameters["projection"]) if "projection" in parameters else h
    if "up" in parameters:
        up = g.linear(h, parameters["up"])  # gelu by its tanh formula, as in flax
        inner = g("Mul", g("Add", up, g("Mul", g("Mul", g("Mul", up, up), up), 0.044715)), (2 / np.pi) ** 0.5)
        gelu = g("Mul", g("Mul", up, 0.5), g("Add", g("Tanh", inner), 1.0))
        z = g("Add", z, g.linear(gelu, parameters["down"]))
    return z
