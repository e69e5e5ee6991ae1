"""Augmentation of images: pure functions of a key and uint8 images [B, h, w, c].

Every example draws its own crop and mirror.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, assert_never

import jax
import jax.numpy as jnp

from mrl_jax.encoders.randaugment import randaugment

Augmentation = Literal["none", "flip", "flip_crop", "resized_crop"]

PADDING = 4  # pixels around a small image before its random crop
MAX_TAPS = 16  # pixels below a filter up to which a CPU gathers them: an image of eight times the size of its crop


def in_training(config: Any, draw: Callable[[], jax.Array], images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Images [B, h, w, c] as `augment` and `randaugment` of an encoder's settings let training see them, [B, *size, c];
    `draw` gives a fresh key where one is needed."""
    seen = augment(config.augment, draw, images, size)
    return randaugment(draw(), seen, config.randaugment) if config.randaugment else seen


def augment(kind: Augmentation, draw: Callable[[], jax.Array], images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Images [B, h, w, c] as training sees them, [B, *size, c]; `draw` gives a fresh key where one is needed."""
    match kind:
        case "none":
            return center_crop(images, size)
        case "flip":
            return flip(draw(), center_crop(images, size))
        case "flip_crop":
            return flip_crop(draw(), images, size)
        case "resized_crop":
            return resized_crop(draw(), images, size)
        case _:
            assert_never(kind)


def center_crop(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The middle `size` = (height, width) of every image."""
    top, left = (images.shape[1] - size[0]) // 2, (images.shape[2] - size[1]) // 2
    return images[:, top : top + size[0], left : left + size[1]]


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror every image left to right with probability 1/2."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def flip_crop(key: jax.Array, images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Pad by `PADDING` black pixels, crop a random window of `size` = (height, width), mirror. Returns uint8."""
    crop_key, flip_key = jax.random.split(key)
    room = jnp.array([images.shape[1] - size[0], images.shape[2] - size[1]]) + 2 * PADDING
    corners = jax.random.randint(crop_key, (len(images), 2), 0, room + 1)
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (*size, images.shape[3]))

    return flip(flip_key, jax.vmap(crop)(padded, corners))


def resized_crop(key: jax.Array, images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Crop a random box (`random_boxes`), resize it to `size`, mirror: the ImageNet recipe. Returns float32 0–255."""
    box_key, flip_key = jax.random.split(key)
    boxes = random_boxes(box_key, len(images), images.shape[1], images.shape[2])
    return crop_and_resize(images, boxes, size, jax.random.bernoulli(flip_key, shape=(len(images),)))


def random_boxes(key: jax.Array, count: int, height: int, width: int) -> jax.Array:
    """int32 [count, 4] of (top, left, height, width) inside the image: area 8–100 %, width / height 3/4–4/3.

    The first of ten candidates that fits (Szegedy et al. 2014, arXiv:1409.4842); if none fits, the first, clipped to
    the image. The area is uniform, the ratio log-uniform.
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


def crop_and_resize(
    images: jax.Array, boxes: jax.Array, size: tuple[int, int], mirrored: jax.Array | None = None
) -> jax.Array:
    """Bilinear, antialiased resize of every image's box to `size`: float32 [B, *size, c]. Boxes as in `random_boxes`.

    Interpolation is separable, columns first and then rows, and one compiled program serves boxes of all sizes. A CPU
    reads the few pixels below each filter, O(taps) per output pixel. Accelerators, which multiply matrices faster than
    they gather, take two dense matmuls per image, O(height + width) per output pixel; so do filters of many taps.

    Args:
        images: [B, h, w, c].
        boxes: int [B, 4].
        size: height and width of the result.
        mirrored: bool [B], whether to mirror the result left to right; None: no image is mirrored.
    """
    mirrored = jnp.zeros(len(images), bool) if mirrored is None else mirrored
    by_matmuls = partial(_resize_by_matmuls, size=size)
    if max(map(_count_taps, images.shape[1:3], size)) > MAX_TAPS:
        return by_matmuls(images, boxes, mirrored)
    by_taps = partial(_resize_by_taps, size=size)
    resized: jax.Array = jax.lax.platform_dependent(images, boxes, mirrored, cpu=by_taps, default=by_matmuls)
    return resized


def _resize_by_matmuls(images: jax.Array, boxes: jax.Array, mirrored: jax.Array, size: tuple[int, int]) -> jax.Array:
    """As `crop_and_resize`, with weights for all pixels of a line."""

    def weigh(start: jax.Array, length: jax.Array, pixels: int, out: int) -> jax.Array:
        return interpolation(start, length, out, jnp.arange(pixels))

    rows = jax.vmap(partial(weigh, pixels=images.shape[1], out=size[0]))(boxes[:, 0], boxes[:, 2])
    columns = jax.vmap(partial(weigh, pixels=images.shape[2], out=size[1]))(boxes[:, 1], boxes[:, 3])
    columns = jnp.where(mirrored[:, None, None], columns[:, ::-1], columns)
    return jnp.einsum("bih,bhwc,bjw->bijc", rows, images.astype(jnp.float32), columns)


def _resize_by_taps(images: jax.Array, boxes: jax.Array, mirrored: jax.Array, size: tuple[int, int]) -> jax.Array:
    """As `crop_and_resize`, with weights for the pixels below each filter."""

    def taps(start: jax.Array, length: jax.Array, pixels: int, out: int) -> tuple[jax.Array, jax.Array]:
        centres, reach = _filters(start, length, out)
        at = jnp.floor(centres - reach).astype(jnp.int32)[:, None] + 1 + jnp.arange(_count_taps(pixels, out))
        return at, interpolation(start, length, out, at)

    rows = jax.vmap(partial(taps, pixels=images.shape[1], out=size[0]))(boxes[:, 0], boxes[:, 2])
    columns = jax.vmap(partial(taps, pixels=images.shape[2], out=size[1]))(boxes[:, 1], boxes[:, 3])
    columns = jax.tree.map(lambda x: jnp.where(mirrored[:, None, None], x[:, ::-1], x), columns)
    for axis, (at, weights) in ((1, columns), (0, rows)):  # of an image: bytes are cheaper to gather one by one
        take = jax.vmap(partial(jnp.take, axis=axis, mode="clip"))
        across = jnp.expand_dims(weights, (2 - axis, 3))
        images = sum((across[..., k] * take(images, at[:, :, k]) for k in range(at.shape[2])), jnp.float32(0))
    return images


def interpolation(start: jax.Array, length: jax.Array, out: int, at: jax.Array) -> jax.Array:
    """Weights [out, n] of the pixels `at` of a line, [n] or [out, n], that resize its segment `[start, start + length)`
    to `out` pixels.

    A triangle filter as wide as an output pixel (at least as an input pixel), over pixels of the segment only: exactly
    the same as cropping first and resizing then.
    """
    centres, reach = _filters(start, length, out)
    weights = jnp.maximum(0, 1 - jnp.abs(centres[:, None] - at) / reach)
    weights = jnp.where((at >= start) & (at < start + length), weights, 0)
    return weights / weights.sum(1, keepdims=True)


def _filters(start: jax.Array, length: jax.Array, out: int) -> tuple[jax.Array, jax.Array]:
    """Where the `out` filters of a segment have their centres, [out], and how far they reach to either side."""
    scale = length / out
    return start + (jnp.arange(out) + 0.5) * scale - 0.5, jnp.maximum(scale, 1)


def _count_taps(pixels: int, out: int) -> int:
    """How many pixels at most lie below a filter that resizes a segment of `pixels` or fewer to `out`."""
    return math.ceil(2 * max(pixels / out, 1))
