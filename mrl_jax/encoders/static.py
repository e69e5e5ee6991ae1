"""Static embeddings: one vector per token, and the mean of a text's. No layers: the fastest encoder there is.

    z = (1 / L) Σ_t e_t        over the L tokens of the text; 0 for a text without any

It is a `Bag` whose words are the tokens of a text, each as often as it occurs and of equal weight, which makes it a
StaticEmbedding of sentence-transformers. The vectors are drawn at random, read, or distilled from a transformer (see
`static_tables`), and then trained as any other encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.data.prompts import Prompts
from mrl_jax.encoders import static_tables
from mrl_jax.encoders.bag import Bag, BagConfig
from mrl_jax.encoders.base import EncoderConfig, rotate_layers
from mrl_jax.encoders.huggingface import StaticModel
from mrl_jax.encoders.onnx_graph import Graph, as_float32
from mrl_jax.system.errors import UserError, at_least, share
from mrl_jax.text.tokenizers import Arrays, Subwords, Texts


@dataclass(frozen=True)
class StaticConfig(EncoderConfig):
    """One vector per token."""

    name: str = "static"
    weights: str | None = None  # null: random; wordllama or a StaticEmbedding folder; minilm, mpnet, … are distilled
    tokenizer: str | None = None  # of random vectors: that of such weights; null: learnt from the training texts
    vocabulary: int = at_least(8192, 1)  # number of subwords learnt from the training texts
    max_length: int = at_least(512, 1)  # maximum number of tokens per text; tokenizer.json of the weights may say less
    token_weights: Literal["equal", "zipf"] | None = None  # of the initial vectors; null: zipf where they are distilled
    token_dropout: float = share(0.0)  # share of a text's tokens left out at each training step
    dropout: float = share(0.0)  # share of an embedding's coordinates set to zero in training


@dataclass
class Tokens(Subwords):
    """As `Subwords`, for a bag: `ids` int32 [n, L] and `weights` int8 [n, L], 0 for padding."""

    @property
    def vocabulary(self) -> int:
        return 1 + max(self.tokenizer.get_vocab().values())

    def __call__(self, raw: Any) -> Arrays:
        arrays = super().__call__(raw)
        return {"ids": arrays["ids"], "weights": arrays["mask"]}


class Static(Bag):
    """inputs: `ids` int32 [B, L], `weights` [B, L] (0 = padding) → float32 [B, D]."""

    def __init__(
        self,
        config: StaticConfig,
        *,
        inputs: dict[str, tuple[int, ...]],
        vocabulary: int,
        width: int,
        rngs: nnx.Rngs,
    ) -> None:
        """Raises `UserError` for inputs that are not tokens, and weights that cannot be loaded or are too narrow."""
        bag = BagConfig(config.name, word_dropout=config.token_dropout, dropout=config.dropout)
        super().__init__(bag, inputs=inputs, vocabulary=vocabulary, width=width, rngs=rngs)
        if config.weights is not None:
            check_width(config, width)
            zipf = None if config.token_weights is None else config.token_weights == "zipf"
            tokenizer = static_tables.read_tokenizer(config.weights, config.max_length)
            table = static_tables.vectors(config.weights, tokenizer, width, zipf)
            self.embedding = nnx.Param(jnp.asarray(table))

    @staticmethod
    def scale(weights_BxL: jax.Array) -> jax.Array:
        """The weights of each text, of sum 1."""
        weights_BxL = weights_BxL.astype(jnp.float32)
        return weights_BxL / jnp.maximum(jnp.sum(weights_BxL, axis=-1, keepdims=True), 1.0)


def check_width(config: StaticConfig, width: int) -> None:
    """Raise `UserError` for settings that random vectors cannot have, and a width beyond that of the weights."""
    if config.weights is None and config.token_weights is not None:
        raise UserError(f"encoder.token_weights={config.token_weights} needs encoder.weights; without, null")
    if config.weights is not None and config.tokenizer is not None:
        raise UserError(
            f"encoder.tokenizer={config.tokenizer} is not allowed with encoder.weights, which have their own"
        )
    if config.weights is not None and width > (most := static_tables.width_of(config.weights)):
        raise UserError(f"width={width} is not allowed; encoder.weights={config.weights} have {most}")


def fit_preprocessor(
    kind: str, texts: Texts, *, weights: str | None, tokenizer: str | None, vocabulary: int, max_length: int
) -> Tokens:
    """The tokenizer of the weights, or one that is learnt from the texts."""
    del kind  # text
    if weights is not None:
        return Tokens(static_tables.read_tokenizer(weights, max_length))
    if tokenizer is not None:
        return Tokens(static_tables.read_tokenizer(tokenizer, max_length, "encoder.tokenizer"))
    return Tokens(Subwords.fit(texts, vocabulary=vocabulary, max_length=max_length).tokenizer)


def load_preprocessor(config: StaticConfig, directory: Path, kind: str) -> Tokens:
    """The tokenizer that was saved with a run."""
    del kind  # text
    return Tokens(Subwords.load(directory, max_length=config.max_length).tokenizer)


def standalone(config: StaticConfig, vocabulary: int) -> tuple[StaticConfig, int]:
    """The same encoder without its pretrained vectors."""
    return replace(config, weights=None, tokenizer=None, token_weights=None), vocabulary


def prompts(config: StaticConfig, given: Mapping[str, str] | None) -> Prompts:
    """The prompts that are `given`, by default those of the weights."""
    if given is None and config.weights is not None:
        given = static_tables.prompts_of(config.weights)
    return Prompts(given or {})


def rotate(config: StaticConfig, parameters: Any, rotation: np.ndarray) -> tuple[StaticConfig, Any]:
    """The table rotated, whose vectors' mean is the embedding."""
    return config, rotate_layers(parameters, ("embedding",), rotation)


def digest(config: StaticConfig) -> str | None:
    """SHA-256 that identifies the weights that the vectors come from."""
    return None if config.weights is None else static_tables.digest_of(config.weights)


def module_inputs(tokens: Tokens, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What the module reads, from `input_ids` and `attention_mask`."""
    del tokens
    return {"ids": arrays["input_ids"], "weights": arrays["attention_mask"]}


def onnx(g: Graph, config: StaticConfig, tokens: Tokens, parameters: Any) -> str:
    """The mean of the vectors, as an ONNX graph."""
    del config, tokens
    mask = g.cast("attention_mask", "float")
    weights = g("Div", mask, g("Max", g("ReduceSum", mask, [1], keepdims=1), np.float32(1)))
    vectors = g("Gather", as_float32(parameters["embedding"]), "input_ids")
    return g("ReduceSum", g("Mul", vectors, g("Unsqueeze", weights, [2])), [1], keepdims=0)


def hugging_face(config: StaticConfig, parameters: Any) -> StaticModel:
    """The table of vectors."""
    return StaticModel(as_float32(parameters["embedding"]), config.max_length)
