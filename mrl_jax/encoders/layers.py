"""Layers of the encoders: a linear map, embeddings, layer norm, GELU, bfloat16 matmuls, fast dropout.

`Linear` and `gelu` are not those of Flax and JAX, which give other digits: `nnx.Linear` draws a second key per layer
and so other initial weights, `jax.nn.gelu` computes 1 + erf(x) as erfc(−x).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.rows import is_zero

initial = nnx.initializers.truncated_normal(0.02)  # as BERT


class Linear(nnx.Module):
    """x @ (kernel + a b) + bias on the last axis of x [B, L, in]; `dtype` is that of the operands, `rank` that of
    a b, which starts as zero (LoRA: Hu et al., 2021); 0: there is none."""

    def __init__(self, n_in: int, n_out: int, dtype: str, rngs: nnx.Rngs, bias: bool = True, rank: int = 0) -> None:
        self.kernel = nnx.Param(initial(rngs.params(), (n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if bias else None
        self.lora_a = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (n_in, rank))) if rank else None
        self.lora_b = nnx.Param(jnp.zeros((rank, n_out))) if rank else None
        self.matmul = bf16_matmul if dtype == "bfloat16" else jnp.matmul

    def __call__(self, x: jax.Array) -> jax.Array:
        product = self.matmul(x, self.kernel[...])
        if self.lora_a is not None and self.lora_b is not None:
            product = product + self.matmul(self.matmul(x, self.lora_a[...]), self.lora_b[...])
        return product if self.bias is None else product + self.bias[...]


def embedding(rows: int, hidden: int, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    """A table of vectors [rows, hidden]."""
    return nnx.Param(initial(rngs.params(), (rows, hidden)))


def layer_norm(hidden: int, epsilon: float, rngs: nnx.Rngs, bias: bool = True) -> nnx.LayerNorm:
    """A layer norm with the slower variance, which loses no digits where the mean is large against the spread."""
    return nnx.LayerNorm(hidden, epsilon=epsilon, use_fast_variance=False, use_bias=bias, rngs=rngs)


def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) with the exact normal distribution function, as BERT."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: jax.Array) -> jax.Array:
    """x σ(1.702 x), which approximates GELU; of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def frozen(module: nnx.Module) -> Callable[[Any], jax.Array]:
    """A module in evaluation at full precision, compiled: arrays → its output."""
    graph, state = nnx.split(module)

    @jax.jit
    def run(state: Any, inputs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return nnx.merge(graph, state)(inputs)

    return lambda inputs: run(state, inputs)


def bf16_dot_general(x: jax.Array, w: jax.Array, dimension_numbers: Any, precision: Any = None, **_: Any) -> jax.Array:
    """`dot_general` of operands rounded to bfloat16, with a float32 sum; for `nnx.Linear`."""
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return jax.lax.dot_general(x, w, dimension_numbers, precision, preferred_element_type=jnp.float32)


@jax.custom_vjp
def bf16_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, L, d] @ kernel [d, f] → float32 [B, L, f], all operands rounded to bfloat16, the cotangent too.

    On a CPU, XLA's matmuls are twice as fast as float32 only if both operands are bfloat16 and the result is float32;
    the gradient of the kernel only if it sums over two token axes, so x keeps its three.
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


def drop(x: jax.Array, rate: float | jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """Dropout: in training each value is zero with probability `rate`, else scaled by 1 / (1 - rate)."""
    if rngs is None or is_zero(rate):
        return x
    threshold: Any
    if isinstance(rate, jax.Array):  # the nearest float32 below 2³² is the largest that a uint32 holds
        threshold = jnp.minimum(jnp.round(rate * 2.0**32), np.float32(2**32 - 256)).astype(jnp.uint32)
    else:
        threshold = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(hash_bits(rngs.dropout(), x.shape) >= threshold, x / (1 - rate), 0)


def hash_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 [*shape]: a counter hashed with two words of `key`. 20 times as fast as `jax.random.bits` on a CPU.

    Two rounds of a bijective integer hash (multipliers of C. Wellons' `lowbias32`), each after mixing in a word of the
    key. Good enough for dropout, not for cryptography.
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
