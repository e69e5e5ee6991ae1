"""A BERT-shaped encoder: tokens of a text → one vector, from scratch or from pretrained weights.

    x = LN(word[ids] + position + token_type[0])
    x = LN(x + attention(x));  x = LN(x + down(gelu(up(x))))        post-LN blocks, dropout before each sum
    z = mean of x over the tokens (or x at the first token), then, if asked for, a linear projection to D

`dtype=bfloat16` rounds the operands of every matmul with a kernel to bfloat16 and keeps sums, outputs, parameters and
the rest in float32. The two matmuls of attention stay in float32: they are about a tenth of the work, and XLA on a CPU
gains nothing on them and refuses some of their layouts.

Letters in einsums: b example, t and s token, h head, k feature of a head, d and f features.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mrl_jax.encoders import huggingface
from mrl_jax.encoders.base import EncoderConfig
from mrl_jax.encoders.huggingface import Architecture, BertModel
from mrl_jax.encoders.layers import Linear, drop, embedding, gelu, layer_norm
from mrl_jax.encoders.onnx_graph import Graph, as_float32
from mrl_jax.errors import UserError, at_least, limited, one_of
from mrl_jax.text.tokenizers import Subwords, Texts

SCRATCH = Architecture(vocabulary=0, layers=6, hidden=384, heads=12, intermediate=1536, positions=256)
SIZES = ("layers", "hidden", "heads", "intermediate", "layer_norm_eps")


@dataclass(frozen=True)
class TransformerConfig(EncoderConfig):
    """Settings; with `weights`, sizes that are null come from the weights, and those that are given must agree."""

    name: str = "transformer"
    weights: str | None = None  # null: from scratch; minilm; a folder in Hugging Face format; or a hub name
    layers: int | None = None  # blocks; from scratch 6
    hidden: int | None = None  # width of the residual stream; from scratch 384
    heads: int | None = None  # attention heads, a divisor of hidden; from scratch 12
    intermediate: int | None = None  # width inside a feed-forward block; from scratch 1536
    max_length: int | None = limited(None, "at least 1, or null", lambda n: n >= 1)  # tokens per text; from scratch 256
    positions: int | None = None  # rows of the table of positions; from scratch max_length
    vocabulary: int = at_least(8192, 1)  # from scratch: number of subwords learnt from the training texts
    layer_norm_eps: float | None = None  # from scratch 1e-12
    pooling: huggingface.Pooling | None = None  # from scratch mean
    projection: bool = False  # a last linear map hidden → width; without it width must equal hidden
    dropout: float = 0.1  # of the embeddings and of the output of attention and feed-forward, in [0, 1)
    attention_dropout: float = 0.1  # of the attention weights, in [0, 1)
    dtype: Literal["float32", "bfloat16"] = "float32"  # operands of matmuls
    attention: Literal["plain", "fused"] = "plain"  # fused: one kernel of JAX's, on GPUs; needs attention_dropout=0


def complete(config: TransformerConfig, vocabulary: int) -> tuple[TransformerConfig, Architecture]:
    """`config` without nulls, and the architecture it asks for with `vocabulary` token ids. Raises `UserError`.

    From scratch the table of positions has `max_length` rows unless it is given; with weights it has theirs.
    """
    if config.weights is None:
        sizes = {key: value for key in SIZES if (value := getattr(config, key)) is not None}
        length = SCRATCH.positions if config.max_length is None else config.max_length
        architecture = replace(SCRATCH, vocabulary=vocabulary, positions=config.positions or length, **sizes)
        pooling: huggingface.Pooling = "mean"
    else:
        described = huggingface.describe(huggingface.resolve(config.weights))
        architecture, pooling, length = described.architecture, described.pooling, described.max_length
        if vocabulary > architecture.vocabulary:
            raise UserError(
                f"encoder.weights={config.weights} know {architecture.vocabulary} token ids, the tokenizer has "
                f"{vocabulary}; use the tokenizer of the weights"
            )
        for key in SIZES:
            given, theirs = getattr(config, key), getattr(architecture, key)
            if given is not None and given != theirs:
                raise UserError(f"encoder.{key}={given} is not allowed; encoder.weights={config.weights} have {theirs}")
        if config.positions not in (None, architecture.positions):
            raise UserError(
                f"encoder.positions={config.positions} is not allowed; encoder.weights={config.weights} have "
                f"{architecture.positions}"
            )
        length = length if config.max_length is None else config.max_length
    if length > architecture.positions:
        raise UserError(f"encoder.max_length={length} is not allowed; there are {architecture.positions} positions")
    all_sizes = {key: getattr(architecture, key) for key in SIZES}
    config = replace(config, **all_sizes, max_length=length, pooling=config.pooling or pooling)
    check(config)
    return config, architecture


def standalone(config: TransformerConfig, vocabulary: int) -> tuple[TransformerConfig, int]:
    """The same encoder without its pretrained weights, and its number of token ids: a trained one is rebuilt from these
    where the weights that it started from are not available."""
    config, sizes = complete(config, vocabulary)
    return replace(config, weights=None, positions=sizes.positions), sizes.vocabulary


def check(config: TransformerConfig) -> None:
    """Raise `UserError` for a setting of a completed config that is out of range."""
    for key in (*SIZES, "max_length"):
        if not getattr(config, key) > 0:
            raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; a number above 0")
    assert config.hidden is not None
    assert config.heads is not None
    if config.hidden % config.heads:
        raise UserError(f"encoder.heads={config.heads} is not allowed; a divisor of encoder.hidden={config.hidden}")
    for key in ("dropout", "attention_dropout"):
        if not 0 <= getattr(config, key) < 1:
            raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; 0 ≤ value < 1")
    if config.attention == "fused" and config.attention_dropout:
        raise UserError(
            f"encoder.attention_dropout={config.attention_dropout} is not allowed with encoder.attention=fused; 0"
        )
    one_of("encoder.attention", config.attention, ("plain", "fused"))
    one_of("encoder.pooling", config.pooling, ("mean", "cls"))
    one_of("encoder.dtype", config.dtype, ("float32", "bfloat16"))


class Transformer(nnx.Module):
    """Inputs {"ids": int32 [B, L], "mask": 0/1 [B, L]} → float32 [B, D]. L may be any length up to the positions.

    Or several texts per row, {"ids", "segment", "position": int32 [R, L], "slot": int32 [B]}, as from `packing.pack`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        inputs: dict[str, tuple[int, ...]],
        vocabulary: int,
        width: int,
        rngs: nnx.Rngs,
    ) -> None:
        """Raises `UserError` if the inputs are not tokens, sizes disagree, or the weights cannot be loaded."""
        if set(inputs) != {"ids", "mask"} or vocabulary < 1:
            raise UserError(f"encoder=transformer reads text as ids and mask, this data set has {', '.join(inputs)}")
        config, sizes = complete(config, vocabulary)
        if not config.projection and width != sizes.hidden:
            raise UserError(
                f"width={width} is not allowed; encoder.hidden={sizes.hidden} needs width={sizes.hidden} "
                "or encoder.projection=true"
            )
        self.architecture = sizes
        self.pooling = config.pooling
        self.dropout = config.dropout
        self.word = embedding(sizes.vocabulary, sizes.hidden, rngs)
        self.position = embedding(sizes.positions, sizes.hidden, rngs)
        self.token_type = embedding(sizes.token_types, sizes.hidden, rngs)
        self.norm = layer_norm(sizes.hidden, sizes.layer_norm_eps, rngs)
        self.blocks = nnx.List([Block(sizes, config, rngs) for _ in range(sizes.layers)])
        self.projection = Linear(sizes.hidden, width, config.dtype, rngs) if config.projection else None
        if config.weights is not None:
            loaded = huggingface.load(huggingface.resolve(config.weights), sizes)
            flat: Any = {path: nnx.Param(jnp.asarray(array)) for path, array in loaded.items()}
            nnx.update(self, nnx.State.from_flat_path(flat))

    def __call__(self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Embed a batch; `rngs` given means training. Raises `UserError` if it is longer than the positions."""
        ids = inputs["ids"]
        length = ids.shape[1]
        if "segment" in inputs:
            segment = inputs["segment"]
            position = self.position[inputs["position"]]
            visible = segment[:, None, :, None] == segment[:, None, None, :]
        else:
            if length > self.architecture.positions:
                raise UserError(f"a text of {length} tokens is too long; the encoder has {self.architecture.positions}")
            mask = inputs["mask"].astype(bool)
            position = self.position[:length]
            visible = mask[:, None, None]
        # Added to the scores. A large number, not -inf, keeps the weights finite in a row of nothing but padding.
        bias = jnp.where(visible, 0.0, -1e30)
        x = self.word[ids] + (position + self.token_type[0])
        x = drop(self.norm(x), self.dropout, rngs)
        for block in self.blocks:
            x = block(x, bias, rngs)
        if "segment" in inputs:
            z = pool_packed(x, segment, inputs["position"], inputs["slot"], self.pooling == "cls")
        else:
            # The first token of a text without any is padding, and its output means nothing.
            z = jnp.where(mask[:, :1], x[:, 0], 0.0) if self.pooling == "cls" else masked_mean(x, mask)
        return z if self.projection is None else self.projection(z[:, None])[:, 0]


class Block(nnx.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and a layer norm."""

    def __init__(self, sizes: Architecture, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        hidden, dtype = sizes.hidden, config.dtype
        self.heads, self.dtype = sizes.heads, dtype
        self.fused = config.attention == "fused"
        self.dropout, self.attention_dropout = config.dropout, config.attention_dropout
        self.query = Linear(hidden, hidden, dtype, rngs)
        self.key = Linear(hidden, hidden, dtype, rngs)
        self.value = Linear(hidden, hidden, dtype, rngs)
        self.attended = Linear(hidden, hidden, dtype, rngs)
        self.attention_norm = layer_norm(hidden, sizes.layer_norm_eps, rngs)
        self.up = Linear(hidden, sizes.intermediate, dtype, rngs)
        self.down = Linear(sizes.intermediate, hidden, dtype, rngs)
        self.output_norm = layer_norm(hidden, sizes.layer_norm_eps, rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """[B, L, hidden] → [B, L, hidden]; `bias` [B, 1, 1 or L, L] is added to the attention scores: 0, or a large
        negative number where a token must not attend."""
        x = self.attention_norm(x + drop(self.attended(self.attention(x, bias, rngs)), self.dropout, rngs))
        x = self.output_norm(x + drop(self.down(gelu(self.up(x))), self.dropout, rngs))
        return x

    def attention(self, x: jax.Array, bias: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """softmax(q kᵀ / √k) v for each head, the heads side by side: [B, L, hidden].

        O(B·L²·hidden) time and O(B·h·L²) memory; on a CPU, passes over these L² numbers cost more than the matmuls. So
        the sum of the softmax divides the result, L × k numbers per head, and not the weights, L × L: forward and
        backward are 1.3 to 1.9 times as fast as the plain formula on [B, L, h, k] views at 64 to 256 tokens.
        """
        batch, length, hidden = x.shape
        split = (batch, length, self.heads, hidden // self.heads)
        if self.fused:
            cast = jnp.bfloat16 if self.dtype == "bfloat16" else jnp.float32
            # cuDNN's kernel takes 16-bit operands only; elsewhere XLA compiles the formula.
            kernel: Literal["cudnn"] | None
            kernel = "cudnn" if jax.default_backend() == "gpu" and self.dtype == "bfloat16" else None
            q, k, v = (linear(x).reshape(split).astype(cast) for linear in (self.query, self.key, self.value))
            visible = jnp.broadcast_to(bias == 0, (batch, 1, length, length))  # cuDNN does not broadcast a mask
            attended = jax.nn.dot_product_attention(q, k, v, mask=visible, implementation=kernel)
            return attended.reshape(x.shape).astype(jnp.float32)
        q, k, v = (linear(x).reshape(split).swapaxes(1, 2) for linear in (self.query, self.key, self.value))
        scores = jnp.einsum("bhtk,bhsk->bhts", q * split[3] ** -0.5, k) + bias
        # A softmax is the same whatever is subtracted, so no gradient has to pass through the maximum.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        dropped = drop(weights, self.attention_dropout, rngs)
        attended = jnp.einsum("bhts,bhsk->bhtk", dropped, v) / weights.sum(axis=-1, keepdims=True)
        return attended.swapaxes(1, 2).reshape(x.shape)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x [B, L, hidden] over the tokens where `mask` is True; zero where there is none."""
    tokens = jnp.maximum(mask.sum(axis=1), 1).astype(x.dtype)
    return jnp.where(mask[..., None], x, 0).sum(axis=1) / tokens[:, None]


def pool_packed(
    x_RxLxH: jax.Array, segment_RxL: jax.Array, position_RxL: jax.Array, slot_S: jax.Array, first: bool
) -> jax.Array:
    """Mean over the tokens of each packed text (or its first token) [S, hidden]; zero for a text without any.

    One matmul per row with an indicator of which token is of which text, R·L·(L + 1)·hidden operations: under 1 % of
    the encoder's work, and unlike a scatter it sums in a fixed order on every device.
    """
    rows, length, hidden = x_RxLxH.shape
    texts = jnp.arange(1, length + 2)[None, :, None]  # the last one stands for empty texts
    of_text = segment_RxL[:, None] == texts
    if first:
        of_text &= position_RxL[:, None] == 0
    indicator = of_text.astype(x_RxLxH.dtype)
    means = jnp.einsum("rst,rth->rsh", indicator, x_RxLxH) / jnp.maximum(indicator.sum(axis=2), 1.0)[..., None]
    return means.reshape(rows * (length + 1), hidden)[slot_S]


def fit_preprocessor(
    kind: str, texts: Texts, *, weights: str | None, vocabulary: int, max_length: int | None
) -> Subwords:
    """The tokenizer of the pretrained weights, or without any one that is learnt from the texts."""
    del kind  # text
    if weights is not None:
        return Subwords(huggingface.load_tokenizer(huggingface.resolve(weights), max_length))
    return Subwords.fit(texts, vocabulary=vocabulary, max_length=max_length or SCRATCH.positions)


def load_preprocessor(config: TransformerConfig, directory: Path, kind: str) -> Subwords:
    """The tokenizer that was saved with a run."""
    del kind  # text
    return Subwords.load(directory, max_length=config.max_length)


def module_inputs(preprocessor: Subwords, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What the module reads, from `input_ids` and `attention_mask`."""
    del preprocessor
    return {"ids": arrays["input_ids"], "mask": arrays["attention_mask"]}


def hugging_face(config: TransformerConfig, parameters: Any) -> BertModel:
    """The encoder as Hugging Face's BERT, with its pooling and projection."""
    config, sizes = complete(*standalone(config, len(parameters["word"])))
    assert config.pooling is not None
    assert config.max_length is not None
    tensors, content = huggingface.to_hugging_face(sizes, parameters, config.dropout, config.attention_dropout)
    projection = parameters["projection"] if config.projection else None
    return BertModel(tensors, content, sizes.hidden, config.pooling, config.max_length, projection)


def onnx(g: Graph, config: TransformerConfig, preprocessor: Subwords, parameters: Any) -> str:
    """`Transformer` in evaluation, as an ONNX graph of `input_ids` and `attention_mask`."""
    del preprocessor
    config, sizes = complete(*standalone(config, len(parameters["word"])))
    head_size = sizes.hidden // sizes.heads

    def norm(x: str, p: Any) -> str:
        scale, bias = as_float32(p["scale"]), as_float32(p["bias"])
        return g("LayerNormalization", x, scale, bias, epsilon=sizes.layer_norm_eps)

    def gelu(x: str) -> str:
        return g("Mul", g("Mul", x, 0.5), g("Add", g("Erf", g("Mul", x, 0.5**0.5)), 1.0))

    table = as_float32(parameters["position"]) + as_float32(parameters["token_type"])[0]
    position = g("Slice", table, [0], g("Shape", "input_ids", start=1, end=2), [0])
    x = norm(g("Add", g("Gather", as_float32(parameters["word"]), "input_ids"), position), parameters["norm"])
    visible = g.cast("attention_mask", "bool")
    bias = g("Where", g("Unsqueeze", visible, [1, 2]), 0.0, -1e30)
    for i in range(sizes.layers):
        block = parameters["blocks"][i]

        def split(name: str, *order: int, x: str = x, block: Any = block) -> str:
            return g("Transpose", g("Reshape", g.linear(x, block[name]), [0, 0, sizes.heads, head_size]), perm=order)

        scores = g("MatMul", g("Mul", split("query", 0, 2, 1, 3), head_size**-0.5), split("key", 0, 2, 3, 1))
        weights = g("Softmax", g("Add", scores, bias), axis=-1)
        mixed = g("Transpose", g("MatMul", weights, split("value", 0, 2, 1, 3)), perm=(0, 2, 1, 3))
        mixed = g.linear(g("Reshape", mixed, [0, 0, sizes.hidden]), block["attended"])
        x = norm(g("Add", x, mixed), block["attention_norm"])
        x = norm(g("Add", x, g.linear(gelu(g.linear(x, block["up"])), block["down"])), block["output_norm"])
    if config.pooling == "cls":
        z = g("Where", g("Gather", visible, [0], axis=1), g("Gather", x, 0, axis=1), 0.0)
    else:
        tokens = g("Unsqueeze", g.cast(visible, "float"), [2])
        total, count = (g("ReduceSum", y, [1], keepdims=0) for y in (g("Mul", x, tokens), tokens))
        z = g("Div", total, g("Max", count, 1.0))
    return g.linear(z, parameters["projection"]) if config.projection else z
