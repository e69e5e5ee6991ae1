"""A BERT-shaped encoder: text tokens → one vector, from scratch or from pretrained weights.

    x = LN(word[ids] + position + token_type[0])
    x = LN(x + attention(x));  x = LN(x + down(gelu(up(x))))        post-LN blocks, dropout before each sum
    z = mean of x over the tokens (or x at the first token), then, if asked for, a linear projection to D

`dtype=bfloat16` rounds the operands of every product with a kernel to bfloat16 and keeps sums, outputs, parameters and
the rest in float32. The two products of attention stay in float32: they are about a tenth of the work, XLA:CPU gains
nothing on them and refuses some of their layouts.

Letters in einsums: b example, t and s token, h head, k feature of a head, d and f features.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.encoders import huggingface
from mrl_jax.encoders.huggingface import Architecture
from mrl_jax.errors import UserError, one_of

SCRATCH = Architecture(vocabulary=0, layers=6, hidden=384, heads=12, intermediate=1536, positions=256)
SIZES = ("layers", "hidden", "heads", "intermediate", "layer_norm_eps")


@dataclass(frozen=True)
class TransformerConfig:
    """With `weights`, the sizes that are null come from the weights, and one that is given must agree with them."""

    name: str = "transformer"
    weights: str | None = None  # null: from scratch; minilm; a folder in Hugging Face format; or a hub name
    layers: int | None = None  # blocks; from scratch 6
    hidden: int | None = None  # width of the residual stream; from scratch 384
    heads: int | None = None  # attention heads, a divisor of hidden; from scratch 12
    intermediate: int | None = None  # width inside a feed-forward block; from scratch 1536
    max_length: int | None = None  # tokens at which a text is cut; from scratch 256
    positions: int | None = None  # rows of the table of positions; from scratch max_length
    vocabulary: int = 8192  # from scratch: subwords learnt from the training texts
    layer_norm_eps: float | None = None  # from scratch 1e-12
    pooling: huggingface.Pooling | None = None  # from scratch mean
    projection: bool = False  # a last linear map hidden → width; without it width must equal hidden
    dropout: float = 0.1  # of the embeddings and of the output of attention and feed-forward, in [0, 1)
    attention_dropout: float = 0.1  # of the attention weights, in [0, 1)
    dtype: Literal["float32", "bfloat16"] = "float32"  # operands of matrix products
    attention: Literal["plain", "fused"] = "plain"  # fused: one kernel of JAX's, on GPUs; without attention_dropout


def complete(config: TransformerConfig, vocabulary: int) -> tuple[TransformerConfig, Architecture]:
    """`config` without nulls, and the architecture it asks for with `vocabulary` token ids. Raises `UserError`.

    From scratch the table of positions has `max_length` rows unless it is given; with weights it has theirs.
    """
    if config.weights is None:
        given = {key: value for key in SIZES if (value := getattr(config, key)) is not None}
        length = SCRATCH.positions if config.max_length is None else config.max_length
        architecture = replace(SCRATCH, vocabulary=vocabulary, positions=config.positions or length, **given)
        pooling: huggingface.Pooling = "mean"
    else:
        found = huggingface.describe(huggingface.resolve(config.weights))
        architecture, pooling, length = found.architecture, found.pooling, found.max_length
        if vocabulary > architecture.vocabulary:
            raise UserError(
                f"encoder.weights={config.weights} know {architecture.vocabulary} token ids, the tokenizer has "
                f"{vocabulary}; use the tokenizer of the weights"
            )
        for key in SIZES:
            asked, theirs = getattr(config, key), getattr(architecture, key)
            if asked is not None and asked != theirs:
                raise UserError(f"encoder.{key}={asked} is not allowed; encoder.weights={config.weights} have {theirs}")
        if config.positions not in (None, architecture.positions):
            raise UserError(
                f"encoder.positions={config.positions} is not allowed; encoder.weights={config.weights} have "
                f"{architecture.positions}"
            )
        length = length if config.max_length is None else config.max_length
    if length > architecture.positions:
        raise UserError(f"encoder.max_length={length} is not allowed; there are {architecture.positions} positions")
    sizes = {key: getattr(architecture, key) for key in SIZES}
    config = replace(config, **sizes, max_length=length, pooling=config.pooling or pooling)
    check(config)
    return config, architecture


def standalone(config: TransformerConfig, vocabulary: int) -> tuple[TransformerConfig, int]:
    """The same encoder without its pretrained weights, and its number of token ids: what a trained one is rebuilt from
    where the weights that it started from are not at hand."""
    config, sizes = complete(config, vocabulary)
    return replace(config, weights=None, positions=sizes.positions), sizes.vocabulary


def check(config: TransformerConfig) -> None:
    """Raise `UserError` for a value of a completed config that no model can have."""
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

    Or several texts a row, {"ids", "segment", "position": int32 [R, L], "slot": int32 [B]}, as `packing.pack` has it.
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
        """Raises `UserError` if inputs are no tokens, sizes disagree, or the weights cannot be loaded."""
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
        self.norm = layer_norm(sizes, rngs)
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
        # Added to the scores. A large number, not -inf: where a row is nothing but padding the weights stay finite.
        bias = jnp.where(visible, 0.0, -1e30)
        x = self.word[ids] + (position + self.token_type[0])
        x = drop(self.norm(x), self.dropout, rngs)
        for block in self.blocks:
            x = block(x, bias, rngs)
        if "segment" in inputs:
            z = unpacked(x, segment, inputs["position"], inputs["slot"], self.pooling == "cls")
        else:
            # Where a text has no token at all, its first place is padding and says nothing.
            z = jnp.where(mask[:, :1], x[:, 0], 0.0) if self.pooling == "cls" else mean(x, mask)
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
        self.attention_norm = layer_norm(sizes, rngs)
        self.up = Linear(hidden, sizes.intermediate, dtype, rngs)
        self.down = Linear(sizes.intermediate, hidden, dtype, rngs)
        self.output_norm = layer_norm(sizes, rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """[B, L, hidden] → [B, L, hidden]; `bias` [B, 1, 1 or L, L] is added to the scores of a token looking at
        another: 0, or a large negative number where it must not."""
        x = self.attention_norm(x + drop(self.attended(self.attention(x, bias, rngs)), self.dropout, rngs))
        x = self.output_norm(x + drop(self.down(gelu(self.up(x))), self.dropout, rngs))
        return x

    def attention(self, x: jax.Array, bias: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """softmax(q kᵀ / √k) v for each head, the heads side by side: [B, L, hidden].

        O(B·L²·hidden) time and O(B·h·L²) memory; on a CPU passes over these L² numbers cost more than the products. So
        the sum of the softmax divides the result, L × k numbers a head, and not the weights, L × L: 1.3 to 1.9 times as
        fast, forward and backward, as the plain formula on [B, L, h, k] views at 64 to 256 tokens.
        """
        batch, length, hidden = x.shape
        split = (batch, length, self.heads, hidden // self.heads)
        if self.fused:
            cast = jnp.bfloat16 if self.dtype == "bfloat16" else jnp.float32
            # cuDNN's kernel takes 16-bit numbers only; elsewhere XLA gets the formula.
            kernel: Literal["cudnn"] | None
            kernel = "cudnn" if jax.default_backend() == "gpu" and self.dtype == "bfloat16" else None
            q, k, v = (linear(x).reshape(split).astype(cast) for linear in (self.query, self.key, self.value))
            visible = jnp.broadcast_to(bias == 0, (batch, 1, length, length))  # cuDNN's does not broadcast it
            attended = jax.nn.dot_product_attention(q, k, v, mask=visible, implementation=kernel)
            return attended.reshape(x.shape).astype(jnp.float32)
        q, k, v = (linear(x).reshape(split).swapaxes(1, 2) for linear in (self.query, self.key, self.value))
        scores = jnp.einsum("bhtk,bhsk->bhts", q * split[3] ** -0.5, k) + bias
        # A softmax does not depend on what is subtracted, so no gradient has to pass through the maximum.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        dropped = drop(weights, self.attention_dropout, rngs)
        attended = jnp.einsum("bhts,bhsk->bhtk", dropped, v) / weights.sum(axis=-1, keepdims=True)
        return attended.swapaxes(1, 2).reshape(x.shape)


class Linear(nnx.Module):
    """x @ kernel + bias on the last axis of [B, L, in]."""

    def __init__(self, n_in: int, n_out: int, dtype: str, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(initial(rngs.params(), (n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out))
        self.matmul = bf16_matmul if dtype == "bfloat16" else jnp.matmul

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.matmul(x, self.kernel[...]) + self.bias[...]


initial = nnx.initializers.truncated_normal(0.02)  # as BERT


def embedding(rows: int, hidden: int, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    """A table of vectors [rows, hidden]."""
    return nnx.Param(initial(rngs.params(), (rows, hidden)))


def layer_norm(sizes: Architecture, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """The slower variance loses no digits where the mean is large against the spread."""
    return nnx.LayerNorm(sizes.hidden, epsilon=sizes.layer_norm_eps, use_fast_variance=False, rngs=rngs)


def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) with the exact normal distribution function, as BERT."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x [B, L, hidden] over the tokens where `mask` is True; zero where there is none."""
    tokens = jnp.maximum(mask.sum(axis=1), 1).astype(x.dtype)
    return jnp.where(mask[..., None], x, 0).sum(axis=1) / tokens[:, None]


def unpacked(
    x_RxLxH: jax.Array, segment_RxL: jax.Array, position_RxL: jax.Array, slot_S: jax.Array, first: bool
) -> jax.Array:
    """Mean over the tokens of each packed text (or its first token) [S, hidden]; zero for a text without any.

    A product a row with the tokens' places in the texts, R·L·(L + 1)·hidden: under 1 % of the encoder's work, and
    unlike a scatter it sums in a fixed order on every device.
    """
    rows, length, hidden = x_RxLxH.shape
    texts = jnp.arange(1, length + 2)[None, :, None]  # the last one stands for empty texts
    chosen = segment_RxL[:, None] == texts
    if first:
        chosen &= position_RxL[:, None] == 0
    places = chosen.astype(x_RxLxH.dtype)
    sums = jnp.einsum("rst,rth->rsh", places, x_RxLxH) / jnp.maximum(places.sum(axis=2), 1.0)[..., None]
    return sums.reshape(rows * (length + 1), hidden)[slot_S]


@jax.custom_vjp
def bf16_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, L, d] @ kernel [d, f] → float32 [B, L, f], all operands rounded to bfloat16, the cotangent too.

    XLA's CPU products are twice as fast as float32 only if both operands are bfloat16 and the result is float32, and
    for the kernel's gradient only if it sums over two token axes: so x keeps its three.
    """
    return bf16_einsum("btd,df->btf", x, kernel)


def bf16_einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def bf16_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)  # saved at half the size
    return bf16_einsum("btd,df->btf", x, kernel), (x, kernel)


def bf16_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return bf16_einsum("btf,df->btd", g, kernel), bf16_einsum("btd,btf->df", x, g)


bf16_matmul.defvjp(bf16_forward, bf16_backward)


def drop(x: jax.Array, rate: float, rngs: nnx.Rngs | None) -> jax.Array:
    """Dropout: in training each value is zero with probability `rate`, else scaled by 1 / (1 - rate)."""
    if rngs is None or rate == 0:
        return x
    threshold = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(hash_bits(rngs.dropout(), x.shape) >= threshold, x / (1 - rate), 0)


def hash_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 [*shape]: a counter hashed with two words of `key`. 20 times as fast as `jax.random.bits` on a CPU.

    Two rounds of a bijective integer hash (multipliers of C. Wellons' `lowbias32`), each after a key word is mixed in.
    Good enough to choose what to drop, not for anything that must be hard to guess.
    """
    start, twist = jax.random.bits(key, (2,))
    counter = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        counter += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return scramble(scramble(counter + start) ^ twist)


def scramble(h: jax.Array) -> jax.Array:
    """A bijection of uint32 in which each bit of the input flips each bit of the output about half of the time."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)
