"""A residual network of images: ResNet-18 (basic blocks) or ResNet-50 (bottlenecks, the stride on the 3×3: "v1.5").

    uint8 image → augmentation (training only) → (x/255 − mean)/std → stem → 4 stages → average pool → [linear to D]

The linear map exists only when D differs from the number of features (8 × channels or 32 × channels). Without it the
embedding is the pooled backbone itself, as in the Matryoshka paper: FF(m) is then the whole backbone with a loss on its
first m features, not a backbone of width m. Nothing after the pool mixes coordinates except that one linear map.

He et al. 2015, arXiv:1512.03385; zero scale at the end of a residual branch: Goyal et al. 2017, arXiv:1706.02677.
Convolutions are NHWC. On two CPU cores XLA's own convolution, forward + backward, is 1.3–3 times as fast as patches and
a matmul (except on tiny maps, see `convolve`); its gradient inside `lax.scan` is 8 times as slow: jit the step.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from mrl_jax.encoders.augmentation import Augmentation, center_crop, in_training
from mrl_jax.encoders.base import EncoderConfig
from mrl_jax.encoders.mixing import mixed
from mrl_jax.encoders.randaugment import MAX_LEVEL
from mrl_jax.system.errors import UserError, at_least, limited, one_of

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # blocks in each stage
Stem = Literal["small", "strided", "imagenet"]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class ConvNetConfig(EncoderConfig):
    """A residual network for images."""

    name: str = "convnet"
    depth: int = 18  # 18 (features: 8 × channels) or 50 (features: 32 × channels)
    channels: int = 64  # base width; 64 is the published network, 16 trains on a CPU
    stem: Stem = "small"  # small: 3×3; strided: 5×5, stride 2; imagenet: 7×7, stride 2, and a max-pool of stride 2
    augment: Augmentation = "none"  # in training; flip_crop: mirror and shift by ≤ 4 pixels; resized_crop: ImageNet's
    randaugment: int = limited(0, "0 to 10", lambda n: 0 <= n <= MAX_LEVEL)  # in training: level; 0: none
    mixup: float = at_least(0.0, 0)  # in training: α of mixtures of two images and their labels; 0: none
    cutmix: float = at_least(0.0, 0)  # in training: α of squares of other images, and their labels; 0: none
    crop: int = 0  # side in pixels of the square that is read (in evaluation the centre); 0: the whole image
    mean: tuple[float, ...] = (0.5,)  # of the pixels in [0, 1]: one number, or one per channel
    std: tuple[float, ...] = (0.25,)  # standard deviation of the pixels, likewise
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the convolutions; parameters and statistics stay float32


class Norm(nnx.BatchNorm):
    """Batch norm with PyTorch's momentum of 0.9 / 0.1 for running statistics, and also for a batch with one value.

    One example on a 1×1 map has no variance: its batch statistics would erase it, so the running ones normalise it and
    are not updated.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, zero: bool = False):
        scale = nnx.initializers.zeros if zero else nnx.initializers.ones
        super().__init__(channels, momentum=0.9, scale_init=scale, rngs=rngs)

    def normalise(self, x: jax.Array, training: bool) -> jax.Array:
        """`x` [B, h, w, c], statistics and arithmetic in float32, returned in the type of `x`."""
        running = not training or x.size == x.shape[-1]
        y: jax.Array = self(x.astype(jnp.float32), use_running_average=running)
        return y.astype(x.dtype)


class Conv(nnx.Module):
    """A convolution without bias, its batch norm and, unless it ends a branch, a ReLU. Zero-padded by (kernel−1)/2."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        stride: int,
        *,
        dtype: str,
        rngs: nnx.Rngs,
        relu: bool,
        zero: bool = False,
    ):
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, arXiv:1502.01852
        self.kernel = nnx.Param(init(rngs.params(), (kernel, kernel, n_in, n_out)))
        self.stride = stride
        self.dtype = DTYPES[dtype]
        self.norm = Norm(n_out, rngs=rngs, zero=zero)
        self.relu = relu

    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        x = convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride)
        x = self.norm.normalise(x, training)
        return nnx.relu(x) if self.relu else x


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`x` [B, h, w, c], zero-padded by (k−1)/2, with `kernel` [k, k, c, n] → [B, ⌈h/stride⌉, ⌈w/stride⌉, n].

    Where the output map is smaller than the kernel, XLA leaves its fast path on the CPU (2×2×128, k = 3: 31 ms forward
    against 1.4), so that case is one matmul of the k² shifted copies.
    """
    k, pad = len(kernel), len(kernel) // 2
    height, width = (-(-side // stride) for side in x.shape[1:3])
    if min(height, width) >= k:
        padding = ((pad, pad), (pad, pad))
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    copies = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(k)
        for j in range(k)
    ]
    return jnp.concatenate(copies, -1) @ kernel.reshape(-1, kernel.shape[-1])


class Block(nnx.Module):
    """`relu(x + branch(x))`: two 3×3 convolutions (depth 18) or 1×1, 3×3, 1×1 to four times the width (depth 50)."""

    def __init__(self, n_in: int, width: int, stride: int, *, depth: int, dtype: str, rngs: nnx.Rngs):
        conv = partial(Conv, dtype=dtype, rngs=rngs)
        n_out = width if depth == 18 else 4 * width
        if depth == 18:
            branch = [
                conv(n_in, width, 3, stride, relu=True),
                conv(width, n_out, 3, 1, relu=False, zero=True),
            ]
        else:
            branch = [
                conv(n_in, width, 1, 1, relu=True),
                conv(width, width, 3, stride, relu=True),
                conv(width, n_out, 1, 1, relu=False, zero=True),
            ]
        self.branch = nnx.List(branch)
        same = stride == 1 and n_in == n_out
        self.shortcut = None if same else conv(n_in, n_out, 1, stride, relu=False)

    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        y = x
        for conv in self.branch:
            y = conv(y, training)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, training)))


class ConvNet(nnx.Module):
    """Residual network: `{"image": uint8 [B, h, w, c]}` → float32 [B, width].

    Raises `UserError` for a setting that is not supported or does not suit the images.
    """

    def __init__(
        self, config: ConvNetConfig, *, inputs: dict[str, tuple[int, ...]], vocabulary: int, width: int, rngs: nnx.Rngs
    ):
        del vocabulary  # text only
        config = replace(config, mean=tuple(config.mean), std=tuple(config.std))  # a list would not hash under jit
        n_in = check(config, inputs)
        self.config = config
        kernel, stride = {"small": (3, 1), "strided": (5, 2), "imagenet": (7, 2)}[config.stem]
        self.stem = Conv(n_in, config.channels, kernel, stride, dtype=config.dtype, rngs=rngs, relu=True)
        blocks: list[Block] = []
        features = config.channels
        for stage, count in enumerate(STAGES[config.depth]):
            wide = config.channels * 2**stage
            for block in range(count):
                step = 2 if stage > 0 and block == 0 else 1
                blocks.append(Block(features, wide, step, depth=config.depth, dtype=config.dtype, rngs=rngs))
                features = wide if config.depth == 18 else 4 * wide
        self.blocks = nnx.List(blocks)
        self.projection = None if width == features else nnx.Linear(features, width, rngs=rngs)

    def __call__(self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None) -> jax.Array:
        training = rngs is not None
        x = inputs["image"]
        size = (self.config.crop, self.config.crop) if self.config.crop else (x.shape[1], x.shape[2])
        x = center_crop(x, size) if rngs is None else in_training(self.config, rngs.dropout, x, size)
        mean, std = jnp.array(self.config.mean), jnp.array(self.config.std)
        x = mixed((x.astype(jnp.float32) / 255 - mean) / std, inputs.get("mix"))
        x = self.stem(x, training)
        if self.config.stem == "imagenet":
            same = ((0, 0), (1, 1), (1, 1), (0, 0))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), same)
        for block in self.blocks:
            x = block(x, training)
        z = x.astype(jnp.float32).mean((1, 2))
        return z if self.projection is None else self.projection(z)


def check(config: ConvNetConfig, inputs: dict[str, tuple[int, ...]]) -> int:
    """The number of channels of the images. Raises `UserError` for the first setting that cannot work."""
    if "image" not in inputs:
        raise UserError(f"encoder=convnet needs images, but the data has {', '.join(inputs) or 'no input'}")
    if config.depth not in STAGES:
        raise UserError(f"encoder.depth={config.depth} is not supported; allowed: 18, 50")
    if config.channels < 1:
        raise UserError(f"encoder.channels={config.channels} must be 1 or more")
    one_of("encoder.stem", config.stem, get_args(Stem))
    one_of("encoder.augment", config.augment, get_args(Augmentation))
    one_of("encoder.dtype", config.dtype, DTYPES)
    height, width, channels = inputs["image"]
    if not 0 <= config.crop <= min(height, width):
        raise UserError(f"encoder.crop={config.crop} must be from 0 to the image's shorter side, {min(height, width)}")
    for key, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in (1, channels):
            raise UserError(f"encoder.{key}={list(values)} must be one number, or one for each of {channels} channels")
    if min(config.std) <= 0:
        raise UserError(f"encoder.std={list(config.std)} must be greater than 0")
    return channels
