"""One layer of a `Transformer`: attention, then feed-forward, each with its norm and a residual sum.

    x = LN(x + attention(x));  x = LN(x + feed_forward(x))          norms after, as in BERT
    x = x + attention(LN(x));  x = x + feed_forward(LN(x))          norms before, of a family with a last one
    x = x + s ⊙ attention(LN(x));  x = x + t ⊙ feed_forward(LN(x))  and with LayerScale (Touvron et al., 2021)

`families` says which layers, biases and norms there are; dropout comes before each sum.

Letters in einsums: b example, t and s token, h head, k feature of a head.
"""

import math
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.encoders.families import BUCKETS, FARTHEST, Family
from mrl_jax.encoders.layers import Linear, drop, gelu, layer_norm, quick_gelu

FUNCTIONS = {
    "gelu": gelu,
    "gelu_new": jax.nn.gelu,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Sizes(Protocol):
    """What a layer asks of an architecture: of texts `families.Architecture`, of images `vit_families.Architecture`."""

    @property
    def described(self) -> Family: ...
    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def heads_of_keys(self) -> int: ...
    @property
    def features(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...


def norm_of(sizes: Sizes, features: int, rngs: nnx.Rngs) -> Any:
    """The norm of a family: with the mean taken off, or by the root mean square alone (Zhang and Sennrich, 2019)."""
    if sizes.described.norm == "rms":
        return nnx.RMSNorm(features, epsilon=sizes.layer_norm_eps, rngs=rngs)
    return layer_norm(features, sizes.layer_norm_eps, rngs, sizes.described.norm_bias)


class Block(nnx.Module):
    """Attention and feed-forward. `config` is a `TransformerConfig` or a `ViTConfig`."""

    def __init__(self, sizes: Sizes, config: Any, rngs: nnx.Rngs, layer: int = 0) -> None:
        family, hidden, dtype = sizes.described, sizes.hidden, config.dtype
        self.heads, self.heads_of_keys, self.features = sizes.heads, sizes.heads_of_keys, sizes.features
        self.dtype, self.fused = dtype, config.attention == "fused"
        self.dropout, self.attention_dropout = config.dropout, config.attention_dropout
        self.before = family.final_norm is not None
        self.function = FUNCTIONS[family.function]
        self.scale = self.features**-0.5 if family.scaled else 1.0
        width, width_of_keys = sizes.heads * sizes.features, sizes.heads_of_keys * sizes.features
        self.query = Linear(hidden, width, dtype, rngs, family.bias, config.lora_rank)
        self.key = Linear(hidden, width_of_keys, dtype, rngs, family.bias, config.lora_rank)
        self.value = Linear(hidden, width_of_keys, dtype, rngs, family.bias, config.lora_rank)
        self.attended = Linear(width, hidden, dtype, rngs, family.bias, config.lora_rank)
        has_norms = "query_norm" in family.names  # of each head
        self.query_norm = norm_of(sizes, sizes.features, rngs) if has_norms else None
        self.key_norm = norm_of(sizes, sizes.features, rngs) if has_norms else None
        self.attention_norm = norm_of(sizes, hidden, rngs) if layer or family.first_norm else None
        self.up = Linear(hidden, sizes.intermediate, dtype, rngs, family.bias, config.lora_rank)
        gated = "gate" in family.names
        self.gate = Linear(hidden, sizes.intermediate, dtype, rngs, family.bias, config.lora_rank) if gated else None
        self.down = Linear(sizes.intermediate, hidden, dtype, rngs, family.bias, config.lora_rank)
        self.units: Any = None  # 0 or 1 for each hidden unit, see `slices`; None: all are used
        self.output_norm = norm_of(sizes, hidden, rngs)
        initial = family.layer_scale
        self.attention_scale = None if initial is None else nnx.Param(jnp.full(hidden, initial))
        self.output_scale = None if initial is None else nnx.Param(jnp.full(hidden, initial))

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        rngs: nnx.Rngs | None,
        relative: jax.Array | None = None,
        turn: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """[B, L, hidden] → [B, L, hidden]. Added to the attention scores are `bias` [B, 1, 1 or L, L], 0 or a large
        negative number where a token must not attend, and `relative` [heads, L, L]; `turn` is of `angles`."""
        if self.before:
            seen = x if self.attention_norm is None else self.attention_norm(x)
            attended = layer_scaled(
                self.attended(self.attention(seen, bias, rngs, relative, turn)), self.attention_scale
            )
            x = x + drop(attended, self.dropout, rngs)
            fed = layer_scaled(self.feed_forward(self.output_norm(x)), self.output_scale)
            return x + drop(fed, self.dropout, rngs)
        assert self.attention_norm is not None
        attended = self.attended(self.attention(x, bias, rngs, relative, turn))
        x = self.attention_norm(x + drop(attended, self.dropout, rngs))
        x = self.output_norm(x + drop(self.feed_forward(x), self.dropout, rngs))
        return x

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """[B, L, hidden] → [B, L, hidden], token by token."""
        inner = self.function(self.up(x)) if self.gate is None else self.function(self.gate(x)) * self.up(x)
        return self.down(inner if self.units is None else inner * self.units)

    def attention(
        self,
        x: jax.Array,
        bias: jax.Array,
        rngs: nnx.Rngs | None,
        relative: jax.Array | None = None,
        turn: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """softmax(q kᵀ / √k) v (T5: without √k) for each head, the heads side by side: [B, L, heads · k].

        O(B·L²·hidden) time and O(B·h·L²) memory; on a CPU, passes over these L² numbers cost more than the matmuls. So
        the sum of the softmax divides the result, L × k numbers per head, and not the weights, L × L: forward and
        backward are 1.3 to 1.9 times as fast as the plain formula on [B, L, h, k] views at 64 to 256 tokens.
        """
        batch, length, _ = x.shape
        q = self.query(x).reshape(batch, length, self.heads, self.features)
        k, v = (
            linear(x).reshape(batch, length, self.heads_of_keys, self.features) for linear in (self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if self.fused:
            cast = jnp.bfloat16 if self.dtype == "bfloat16" else jnp.float32
            # cuDNN's kernel takes 16-bit operands only, and not in every version of JAX gives the gradient of a bias;
            # elsewhere XLA compiles the formula.
            kernel: Literal["cudnn"] | None
            fits = jax.default_backend() == "gpu" and self.dtype == "bfloat16" and relative is None
            kernel = "cudnn" if fits else None
            q, k, v = (operand.astype(cast) for operand in (q, k, v))
            visible = jnp.broadcast_to(bias == 0, (batch, 1, length, length))  # cuDNN does not broadcast a mask
            added = None if relative is None else relative[None].astype(cast)
            attended = jax.nn.dot_product_attention(q, k, v, added, visible, scale=self.scale, implementation=kernel)
            return attended.reshape(batch, length, -1).astype(jnp.float32)
        if self.heads_of_keys < self.heads:
            k, v = (jnp.repeat(operand, self.heads // self.heads_of_keys, axis=2) for operand in (k, v))
        q, k, v = (operand.swapaxes(1, 2) for operand in (q, k, v))
        scores = jnp.einsum("bhtk,bhsk->bhts", q * self.scale, k) + bias
        scores = scores if relative is None else scores + relative
        # A softmax is the same whatever is subtracted, so no gradient has to pass through the maximum.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        dropped = drop(weights, self.attention_dropout, rngs)
        attended = jnp.einsum("bhts,bhsk->bhtk", dropped, v) / weights.sum(axis=-1, keepdims=True)
        return attended.swapaxes(1, 2).reshape(batch, length, -1)


def layer_scaled(x: jax.Array, factors: nnx.Param[jax.Array] | None) -> jax.Array:
    """x [B, L, hidden] times a factor for each feature, if there are any."""
    return x if factors is None else x * factors[...]


Seen = tuple[jax.Array, tuple[jax.Array, jax.Array] | None]  # a bias of the attention scores, and the angles


def apply_and_forget(
    layers: list[tuple[bool, Block]], x: jax.Array, seen: dict[bool, Seen], rngs: nnx.Rngs, relative: jax.Array | None
) -> jax.Array:
    """The output of layers of the same parts, each with the kind of what its tokens see. Of each only its input is
    kept for the backward pass, which computes the rest once more (Chen et al., 2016).

    The layers are a loop over their parameters side by side: one after another, XLA on a CPU would take the second
    computation for the first, and keep everything. So they are copied, at each step, as are their gradients.
    """
    kinds = sorted(seen)
    all_seen = jax.tree.map(lambda *parts: jnp.stack(jnp.broadcast_arrays(*parts)), *(seen[kind] for kind in kinds))
    graphs, parameters = zip(*(nnx.split(block) for _, block in layers), strict=True)
    keys, start = nnx.split(rngs)

    @jax.checkpoint
    def layer(carry: tuple[jax.Array, Any], one: tuple[Any, jax.Array]) -> tuple[tuple[jax.Array, Any], None]:
        (x, state), (block, kind) = carry, one
        bias, turn = jax.tree.map(lambda parts: parts[kind], all_seen)
        drawn = nnx.merge(keys, state)
        x = nnx.merge(graphs[0], block)(x, bias, drawn, relative, turn)
        return (x, nnx.split(drawn)[1]), None

    side_by_side = jax.tree.map(lambda *arrays: jnp.stack(arrays), *parameters)
    kind_of_each = jnp.array([kinds.index(kind) for kind, _ in layers])
    (x, end), _ = jax.lax.scan(layer, (x, start), (side_by_side, kind_of_each))
    nnx.update(rngs, end)
    return x


def angles(place: jax.Array, theta: float, features: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B or 1, L, 1, k/2] of place · frequency, for tokens at `place` [B or 1, L]."""
    turned = place[:, :, None, None].astype(jnp.float32) * frequencies(theta, features)
    return jnp.cos(turned), jnp.sin(turned)


def frequencies(theta: float, features: int) -> np.ndarray:
    """theta^(−2i/k), i = 0 … k/2 − 1: the angle of each pair of features from one token to the next.

    Each of the three operations is rounded to float32, as in transformers: angles grow with the place of a token, and
    at a distant one more digits would give another.
    """
    exponents = np.arange(0, features, 2, dtype=np.float32) / np.float32(features)
    return np.float32(1) / (theta ** exponents.astype(np.float64)).astype(np.float32)


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x [B, L, h, k], feature i and feature i + k/2 of each head rotated by one angle (Su et al., 2021, in halves)."""
    cosine, sine = turn
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def visible_pairs(visible: jax.Array, causal: bool, window: int | None) -> jax.Array:
    """`visible` [B, 1, 1 or L, L] without later tokens, and without those outside of the window.

    Tokens of one text lie side by side in a packed row, so their distance in the row is that in the text.
    """
    place = jnp.arange(visible.shape[-1])
    distance = place[None, :] - place[:, None]
    if causal:
        visible = visible & (distance <= 0)
    if window is not None:
        visible = visible & (jnp.abs(distance) <= window // 2)
    return visible


def rows_of_positions(ids_BxL: jax.Array, place_BxL: jax.Array | None, padding_id: int) -> jax.Array:
    """The row of each token in a table of positions that begins after `padding_id`: tokens with that id, which a text
    may hold, have the row of that number and are not counted. `place` is where a token stands in its text; without it a
    row holds one text."""
    counted = (ids_BxL != padding_id).astype(jnp.int32)
    count = jnp.cumsum(counted, axis=1)
    if place_BxL is not None:
        first = jnp.arange(ids_BxL.shape[1]) - place_BxL  # of the text, in the row
        count -= jnp.take_along_axis(count - counted, first, axis=1)
    return padding_id + count * counted


def relative_bias(table: jax.Array, length: int, positions: int) -> jax.Array:
    """What is added to the attention scores [heads, length, length] by the distance of two tokens.

    Tokens of one text lie side by side in a packed row, so their distance in the row is that in the text.
    """
    place = jnp.arange(length)
    distance = jnp.clip(place[None, :] - place[:, None], 1 - positions, positions - 1)
    by_distance = table[relative_buckets(positions)]
    return jnp.moveaxis(by_distance[distance + (positions - 1)], 2, 0)


def relative_buckets(positions: int) -> np.ndarray:
    """The bucket of each distance −(positions − 1) … positions − 1 of an attended token from the one that attends.

    The first half is for tokens before it, the second for those after it; of each half the first 8 are single
    distances, the others grow with the logarithm of the distance (T5: Raffel et al., 2020, section 2.1).
    """
    distance = np.arange(1 - positions, positions)
    far = np.abs(distance)
    half, single = BUCKETS // 2, BUCKETS // 4
    # float32 and in this order, as there: some distances lie on the border of two buckets.
    scaled = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(single)) / np.float32(
        math.log(FARTHEST / single)
    )
    grown = np.minimum(single + (scaled * np.float32(half - single)).astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0) + np.where(far < single, far, grown)
