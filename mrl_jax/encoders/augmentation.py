"""Augmentation of images: pure functions of a key and uint8 images [B, h, w, c].

Every example draws its own crop and mirror.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, assert_never

import jax
import jax.numpy as jnp

from mrl_jax.encoders.randaugment import randaugment

Augmentation = Literal["none", "flip", "flip_crop", "resized_crop"]

PADDING = 4  # pixels around a small image before its random crop


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
    return flip(flip_key, crop_and_resize(images, boxes, size))


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


def crop_and_resize(images: jax.Array, boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear, antialiased resize of every image's box to `size`: float32 [B, *size, c]. Boxes as in `random_boxes`.

    Interpolation is separable, so it is two small matmuls per image: no gather, and one compiled program for boxes of
    all sizes.
    """
    rows = jax.vmap(partial(interpolation, pixels=images.shape[1], out=size[0]))(boxes[:, 0], boxes[:, 2])
    columns = jax.vmap(partial(interpolation, pixels=images.shape[2], out=size[1]))(boxes[:, 1], boxes[:, 3])
    return jnp.einsum("bih,bhwc,bjw->bijc", rows, images.astype(jnp.float32), columns)


def interpolation(start: jax.Array, length: jax.Array, pixels: int, out: int) -> jax.Array:
    """Weights [out, pixels] that resize the segment `[start, start + length)` of a line of `pixels` to `out` pixels.

    A triangle filter as wide as an output pixel (at least as an input pixel), over pixels of the segment only: exactly
    the same as cropping first and resizing then.
    """
    scale = length / out
    centres = start + (jnp.arange(out) + 0.5) * scale - 0.5
    at = jnp.arange(pixels)
    weights = jnp.maximum(0, 1 - jnp.abs(centres[:, None] - at) / jnp.maximum(scale, 1))
    weights = jnp.where((at >= start) & (at < start + length), weights, 0)
    return weights / weights.sum(1, keepdims=True)
