"""Images → embeddings: ResNet-18 (basic blocks) and ResNet-50 (bottlenecks, the stride on the 3×3: "v1.5").

    uint8 image → augmentation (training only) → (x/255 − mean)/std → stem → 4 stages → average pool → [linear to D]

The linear map exists only when D differs from the number of features (8 × channels or 32 × channels). Without it the
embedding is the pooled backbone itself, as in the Matryoshka paper: FF(m) is then the whole backbone with a loss on its
first m features, not a backbone of width m. Nothing after the pool mixes coordinates except that one linear map.

He et al. 2015, arXiv:1512.03385; zero scale at the end of a residual branch: Goyal et al. 2017, arXiv:1706.02677.
Convolutions are NHWC. On two CPU cores XLA's own convolution, forward + backward, is 1.3–3 times faster than patches
and a matrix product (except on tiny maps: `convolve`); its gradient inside `lax.scan` is 8 times slower: jit the step.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from mrl_jax.errors import UserError, one_of

PADDING = 4  # pixels around a small image before its random crop
STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # blocks in each stage
Stem = Literal["small", "strided", "imagenet"]
Augmentation = Literal["none", "flip", "flip_crop", "resized_crop"]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class ConvNetConfig:
    """A residual network for images."""

    name: str = "convnet"
    depth: int = 18  # 18 (features: 8 × channels) or 50 (features: 32 × channels)
    channels: int = 64  # base width; 64 is the published network, 16 trains on a CPU
    stem: Stem = "small"  # small: 3×3; strided: 5×5, stride 2; imagenet: 7×7, stride 2, and a max-pool of stride 2
    augment: Augmentation = "none"  # in training; flip_crop: mirror and shift by ≤ 4 pixels; resized_crop: ImageNet's
    crop: int = 0  # side of the square the network sees (from the centre in evaluation); 0: the whole image
    mean: tuple[float, ...] = (0.5,)  # of the pixels in [0, 1]: one number, or one for each channel
    std: tuple[float, ...] = (0.25,)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the convolutions; parameters and statistics stay float32


class Norm(nnx.BatchNorm):
    """Batch norm whose running statistics follow PyTorch's 0.9 / 0.1 and that also stands a batch with one value.

    One example on a 1×1 map has no variance: its batch statistics would erase it, so the running ones normalise it
    and stay as they are.
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

    Where the output map is smaller than the kernel XLA leaves its fast path on the CPU (2×2×128, k = 3: 31 ms forward
    against 1.4), so that case is written as one matrix product of the k² shifted copies.
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

    Raises `UserError` for a value of the configuration that is not supported or does not fit the images.
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
        if rngs is not None and self.config.augment == "flip_crop":
            x = flip_crop(rngs.dropout(), x, size)
        elif rngs is not None and self.config.augment == "resized_crop":
            x = resized_crop(rngs.dropout(), x, size)
        elif rngs is not None and self.config.augment == "flip":
            x = flip(rngs.dropout(), center_crop(x, size))
        else:
            x = center_crop(x, size)
        mean, std = jnp.array(self.config.mean), jnp.array(self.config.std)
        x = (x.astype(jnp.float32) / 255 - mean) / std
        x = self.stem(x, training)
        if self.config.stem == "imagenet":
            same = ((0, 0), (1, 1), (1, 1), (0, 0))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), same)
        for block in self.blocks:
            x = block(x, training)
        z = x.astype(jnp.float32).mean((1, 2))
        return z if self.projection is None else self.projection(z)


def check(config: ConvNetConfig, inputs: dict[str, tuple[int, ...]]) -> int:
    """The number of channels of the images, or a `UserError` for the first value that cannot work."""
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


# Augmentation: pure functions of a key and uint8 images [B, h, w, c]; every example draws its own crop and mirror.


def center_crop(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The middle `size` = (height, width) of every image."""
    top, left = (images.shape[1] - size[0]) // 2, (images.shape[2] - size[1]) // 2
    return images[:, top : top + size[0], left : left + size[1]]


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror every image left to right with probability 1/2."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def flip_crop(key: jax.Array, images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Pad by 4 black pixels, cut a random window of `size` = (height, width), mirror. Returns uint8."""
    crop_key, flip_key = jax.random.split(key)
    room = jnp.array([images.shape[1] - size[0], images.shape[2] - size[1]]) + 2 * PADDING
    corners = jax.random.randint(crop_key, (len(images), 2), 0, room + 1)
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (*size, images.shape[3]))

    return flip(flip_key, jax.vmap(cut)(padded, corners))


def resized_crop(key: jax.Array, images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Cut a random box (`random_boxes`), resize it to `size`, mirror: the ImageNet recipe. Returns float32 0–255."""
    box_key, flip_key = jax.random.split(key)
    boxes = random_boxes(box_key, len(images), images.shape[1], images.shape[2])
    return flip(flip_key, crop_and_resize(images, boxes, size))


def random_boxes(key: jax.Array, count: int, height: int, width: int) -> jax.Array:
    """int32 [count, 4] of (top, left, height, width) inside the image: area 8–100 %, width / height 3/4–4/3.

    Of ten candidates the first that fits is taken (Szegedy et al. 2014, arXiv:1409.4842); if none fits, the first one,
    cut to the image. Area is uniform, the ratio log-uniform.
    """
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (count, 10), minval=0.08, maxval=1.0)
    limit = jnp.log(4 / 3)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (count, 10), minval=-limit, maxval=limit))
    candidates = jnp.round(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)], -1)).astype(jnp.int32)
    whole = jnp.array([height, width])
    first = (candidates <= whole).all(-1).argmax(-1)  # 0 if none fits
    sides = jnp.clip(jnp.take_along_axis(candidates, first[:, None, None], 1)[:, 0], 1, whole)
    corners = jax.random.randint(corner_key, (count, 2), 0, whole - sides + 1)
    return jnp.concatenate([corners, sides], -1)


def crop_and_resize(images: jax.Array, boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear, antialiased resize of every image's box to `size`: float32 [B, *size, c]. Boxes as in `random_boxes`.

    Interpolation is separable, so it is two small matrix products an image: no gather, and boxes may differ in size
    under one compiled program.
    """
    rows = jax.vmap(partial(interpolation, pixels=images.shape[1], out=size[0]))(boxes[:, 0], boxes[:, 2])
    columns = jax.vmap(partial(interpolation, pixels=images.shape[2], out=size[1]))(boxes[:, 1], boxes[:, 3])
    return jnp.einsum("bih,bhwc,bjw->bijc", rows, images.astype(jnp.float32), columns)


def interpolation(start: jax.Array, length: jax.Array, pixels: int, out: int) -> jax.Array:
    """Weights [out, pixels] that resize the segment `[start, start + length)` of a line of `pixels` to `out` pixels.

    Triangle filter as wide as an output pixel (at least as an input pixel), over pixels of the segment only: exactly
    the same as to cut first and resize then.
    """
    scale = length / out
    centres = start + (jnp.arange(out) + 0.5) * scale - 0.5
    at = jnp.arange(pixels)
    weights = jnp.maximum(0, 1 - jnp.abs(centres[:, None] - at) / jnp.maximum(scale, 1))
    weights = jnp.where((at >= start) & (at < start + length), weights, 0)
    return weights / weights.sum(1, keepdims=True)
