"""RandAugment as arrays (Cubuk et al., 2020, arXiv:1909.13719): two operations for each image, at one level.

    colour      y = α x + β grey(x) + γ, clipped to 0–255, with numbers for each image: brightness, contrast,
                saturation, autocontrast, invert;  solarize and posterize pixel by pixel
    geometry    each pixel of the result is read between four of the image at A (i, j) + b: rotate, shear, translate;
                both operations are one A, and what comes from outside is `FILL`
    cutout      a square of `FILL`

Every image draws its own operations, their signs and places. All are computed for all images, with numbers that leave
an image as it is where another operation was drawn: the price is a few passes over the pixels and one gather. Equalize
and sharpness of the paper are left out. Ranges are its own at level 10: ± 30°, shear 0.3, translation 0.45 of a side,
factors 1 ± 0.9, 4 bits, a square of 0.36 of a side.
"""

import jax
import jax.numpy as jnp

OPERATIONS = (
    "identity", "brightness", "contrast", "saturation", "autocontrast", "invert", "solarize", "posterize", "rotate",
    "shear_x", "shear_y", "translate_x", "translate_y", "cutout",
)  # fmt: skip
PER_IMAGE = 2
MAX_LEVEL = 10
FILL = 128.0  # grey
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R 601


def randaugment(key: jax.Array, images: jax.Array, level: int) -> jax.Array:
    """Images [B, h, w, c] of 0–255 with `PER_IMAGE` random operations each, float32 of 0–255."""
    count = images.shape[0]
    which_key, sign_key, place_key = jax.random.split(key, 3)
    which = jax.random.randint(which_key, (PER_IMAGE, count), 0, len(OPERATIONS))
    signs = jnp.where(jax.random.bernoulli(sign_key, shape=(PER_IMAGE, count)), 1.0, -1.0)
    x, strength = images.astype(jnp.float32), level / MAX_LEVEL
    for operations, sign in zip(which, signs, strict=True):
        x = recolour(x, operations, sign, strength)
    x = move(x, which, signs, strength)
    return cut_out(place_key, x, (which == OPERATIONS.index("cutout")).any(axis=0), 0.36 * strength)


def recolour(x: jax.Array, operations: jax.Array, sign: jax.Array, strength: float) -> jax.Array:
    """The colour operation of each image [B, h, w, c]; others leave it as it is."""

    def where(name: str, value: jax.Array | float, otherwise: jax.Array | float) -> jax.Array:
        chosen = (operations == OPERATIONS.index(name))[:, None, None, None]
        return jnp.where(chosen, value, otherwise)

    grey = x @ jnp.array(GREY)[:, None] if x.shape[-1] == 3 else x.mean(axis=-1, keepdims=True)
    factor = (1 + 0.9 * strength * sign)[:, None, None, None]
    low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
    stretch = jnp.where(high > low, 255 / jnp.maximum(high - low, 1), 1.0)
    alpha = where("brightness", factor, where("contrast", factor, where("saturation", factor, 1.0)))
    alpha = where("autocontrast", stretch, where("invert", -1.0, alpha))
    gamma = where("contrast", (1 - factor) * grey.mean(axis=(1, 2), keepdims=True), 0.0)
    gamma = where("autocontrast", jnp.where(high > low, -low * stretch, 0.0), where("invert", 255.0, gamma))
    y = jnp.clip(alpha * x + where("saturation", 1 - factor, 0.0) * grey + gamma, 0, 255)
    y = jnp.where(where("solarize", 256 * (1 - strength), 256.0) <= y, 255 - y, y)
    step = 2.0 ** round(4 * strength)
    return where("posterize", jnp.floor(y / step) * step, y)


def move(x: jax.Array, which: jax.Array, signs: jax.Array, strength: float) -> jax.Array:
    """The geometric operations of each image [B, h, w, c], around its centre, as one interpolation."""
    height, width = x.shape[1:3]
    matrix, shift = jnp.eye(2)[None], jnp.zeros((1, 2))
    for operations, sign in zip(which, signs, strict=True):

        def amount(name: str, largest: float, operations: jax.Array = operations, sign: jax.Array = sign) -> jax.Array:
            return jnp.where(operations == OPERATIONS.index(name), sign * largest * strength, 0.0)

        angle = amount("rotate", jnp.pi / 6)
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.stack([jnp.stack([cosine, -sine], -1), jnp.stack([sine, cosine], -1)], 1)
        one = jnp.ones_like(angle)
        shear = jnp.stack(
            [jnp.stack([one, amount("shear_y", 0.3)], -1), jnp.stack([amount("shear_x", 0.3), one], -1)], 1
        )
        step = jnp.stack([amount("translate_y", 0.45 * height), amount("translate_x", 0.45 * width)], -1)
        both = jnp.einsum("bij,bjk->bik", turn, shear)  # one of the two is the identity
        matrix, shift = jnp.einsum("bij,bjk->bik", both, matrix), jnp.einsum("bij,bj->bi", both, shift) + step
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    at = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1).reshape(-1, 2) - centre
    return sample(x, jnp.einsum("bij,pj->bpi", matrix, at) + shift[:, None] + centre)


def sample(x: jax.Array, places: jax.Array) -> jax.Array:
    """The images [B, h, w, c] at `places` [B, h · w, 2], (row, column), interpolated between four pixels; outside of an
    image lies `FILL`."""
    batch, height, width, channels = x.shape
    flat = x.reshape(batch, height * width, channels)
    start = jnp.floor(places)
    part = places - start
    total = jnp.zeros_like(flat)
    for down in (0, 1):
        for right in (0, 1):
            row, column = start[..., 0].astype(jnp.int32) + down, start[..., 1].astype(jnp.int32) + right
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            pixel = jnp.take_along_axis(flat, index[..., None], axis=1)
            weight = jnp.abs(1 - down - part[..., 0]) * jnp.abs(1 - right - part[..., 1])
            total += weight[..., None] * jnp.where(inside[..., None], pixel, FILL)
    return total.reshape(x.shape)


def cut_out(key: jax.Array, x: jax.Array, chosen: jax.Array, share: float) -> jax.Array:
    """A square of `FILL` in the images [B, h, w, c] that are chosen, with a side of that share of the shorter one; its
    centre is anywhere in the image."""
    height, width = x.shape[1:3]
    half = share * min(height, width) / 2
    centres = jax.random.uniform(key, (x.shape[0], 2, 1)) * jnp.array([[height], [width]])
    rows = jnp.abs(jnp.arange(height) + 0.5 - centres[:, 0]) < half
    columns = jnp.abs(jnp.arange(width) + 0.5 - centres[:, 1]) < half
    hidden = rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]
    return jnp.where(hidden[..., None], FILL, x)
