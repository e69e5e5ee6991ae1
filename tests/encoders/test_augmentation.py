"""Augmentation against plain slicing and resizing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mrl_jax.encoders import augmentation, mixing, randaugment
from mrl_jax.encoders.convnet import ConvNetConfig
from mrl_jax.encoders.randaugment import FILL, OPERATIONS

PICTURE = jnp.arange(12 * 10 * 3, dtype=jnp.int32).reshape(1, 12, 10, 3).astype(jnp.uint8)  # no two pixels alike
MANY = jnp.repeat(PICTURE, 40, 0)
KEY = jax.random.key(3)


def test_flip_mirrors_or_does_nothing():
    out = np.asarray(augmentation.flip(KEY, MANY))
    same = [(image == np.asarray(PICTURE[0])).all() for image in out]
    mirrored = [(image == np.asarray(PICTURE[0])[:, ::-1]).all() for image in out]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 5 < sum(mirrored) < 35


@pytest.mark.parametrize("size", [(12, 10), (8, 8)])
def test_flip_crop_cuts_a_window_of_the_padded_image(size):
    padded = np.pad(np.asarray(PICTURE[0]), ((4, 4), (4, 4), (0, 0)))
    rows, columns = padded.shape[0] - size[0] + 1, padded.shape[1] - size[1] + 1
    windows = {
        window[:, ::step].tobytes(): (i, j)
        for i in range(rows)
        for j in range(columns)
        for step in (1, -1)
        for window in [padded[i : i + size[0], j : j + size[1]]]
    }
    out = np.asarray(augmentation.flip_crop(KEY, jnp.repeat(PICTURE, 2000, 0), size))
    assert out.shape == (2000, *size, 3)
    assert out.dtype == np.uint8
    corners = np.array([windows[image.tobytes()] for image in out])  # a KeyError if it is not a window
    for axis, places in enumerate((rows, columns)):  # every place equally often
        share = np.bincount(corners[:, axis], minlength=places) * places / len(out)
        assert share.shape == (places,)
        assert 0.7 < share.min() < share.max() < 1.3


def test_boxes_are_inside_and_follow_the_recipe():
    boxes = np.asarray(augmentation.random_boxes(KEY, 4000, 64, 64))
    top, left, height, width = boxes.T
    assert boxes.min() >= 0
    assert (top + height <= 64).all()
    assert (left + width <= 64).all()
    area, ratio = height * width / 64**2, width / height
    assert 0.07 < area.min() < 0.1
    assert 0.95 < area.max() <= 1
    assert 0.7 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.42
    assert abs(np.log(ratio).mean()) < 0.02
    long = np.asarray(augmentation.random_boxes(KEY, 500, 3, 400))  # almost no candidate fits
    assert ((long[:, 0] + long[:, 2] <= 3) & (long[:, 1] + long[:, 3] <= 400) & (long[:, 2:].min(1) >= 1)).all()


def of_pillow(image: np.ndarray, box: list[int], size: tuple[int, int]) -> np.ndarray:
    """The box cut out, and resized by Pillow in floating point."""
    top, left, height, width = box
    planes = np.moveaxis(image[top : top + height, left : left + width].astype(np.float32), 2, 0)
    resized = [Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=2)


@pytest.mark.parametrize("resize", [augmentation.crop_and_resize, augmentation._resize_by_matmuls])
@pytest.mark.parametrize("size", [(48, 40), (17, 13), (70, 21), (2, 50)])  # the last has more than `MAX_TAPS`
def test_crop_and_resize_is_pillows_of_what_was_cut_out_and_mirrors(resize, size):
    boxes = [[0, 0, 48, 40], [5, 2, 30, 33], [47, 39, 1, 1], [11, 0, 2, 40]]
    images = np.random.default_rng(1).integers(0, 256, (4, 48, 40, 3)).astype(np.uint8)
    mirrored = np.array([False, True, False, True])
    out = np.asarray(jax.jit(partial(resize, size=size))(images, jnp.array(boxes), mirrored=mirrored))
    assert (size == (2, 50)) == (augmentation._count_taps(48, size[0]) > augmentation.MAX_TAPS)
    for image, box, mirror, found in zip(images, boxes, mirrored, out, strict=True):
        np.testing.assert_allclose(found[:, :: -1 if mirror else 1], of_pillow(image, box, size), atol=1e-2)


def test_a_resized_crop_draws_its_box_and_then_whether_to_mirror():
    @jax.jit
    def step_by_step(key, images):
        box_key, flip_key = jax.random.split(key)
        boxes = augmentation.random_boxes(box_key, len(images), 12, 10)
        return augmentation.flip(flip_key, augmentation.crop_and_resize(images, boxes, (8, 8)))

    found = jax.jit(partial(augmentation.resized_crop, size=(8, 8)))(KEY, MANY)
    np.testing.assert_allclose(found, step_by_step(KEY, MANY), atol=1e-2)


def test_center_crop_takes_the_middle():
    np.testing.assert_array_equal(augmentation.center_crop(PICTURE, (8, 4)), np.asarray(PICTURE)[:, 2:10, 3:7])


# ---- RandAugment -----------------------------------------------------------------------------------------------------

COLOURS = np.random.default_rng(0).integers(20, 230, (12, 10, 3)).astype(np.uint8)


def chosen(name: str, count: int) -> jax.Array:
    return jnp.full(count, OPERATIONS.index(name))


@pytest.mark.parametrize(
    ("name", "of_pillow"),
    [
        ("identity", lambda image, f: image),
        ("brightness", lambda image, f: ImageEnhance.Brightness(image).enhance(f)),
        ("contrast", lambda image, f: ImageEnhance.Contrast(image).enhance(f)),
        ("saturation", lambda image, f: ImageEnhance.Color(image).enhance(f)),
        ("autocontrast", lambda image, f: ImageOps.autocontrast(image)),
        ("invert", lambda image, f: ImageOps.invert(image)),
        ("solarize", lambda image, f: ImageOps.solarize(image, 128)),
        ("posterize", lambda image, f: ImageOps.posterize(image, 6)),
    ],
)
def test_an_operation_on_colours_is_that_of_pillow(name, of_pillow):
    images = jnp.asarray(COLOURS, jnp.float32)[None]
    for sign in (1.0, -1.0):
        found = randaugment.recolour(images, chosen(name, 1), jnp.array([sign]), 0.5)[0]
        expected = np.asarray(of_pillow(Image.fromarray(COLOURS), 1 + 0.45 * sign), np.float32)
        assert np.abs(np.asarray(found) - expected).max() <= 1.6  # Pillow rounds to whole numbers in between
        assert name == "identity" or np.abs(expected - COLOURS).max() > 2


def moved(first: str, second: str = "identity", sign: float = 1.0, strength: float = 1.0) -> np.ndarray:
    which = jnp.stack([chosen(first, 1), chosen(second, 1)])
    images = jnp.asarray(COLOURS, jnp.float32)[None]
    return np.asarray(randaugment.move(images, which, jnp.full((2, 1), sign), strength)[0])


def test_without_a_movement_pixels_stay_where_they_are():
    np.testing.assert_allclose(moved("identity", "invert"), COLOURS, atol=1e-4)


@pytest.mark.parametrize(("name", "axis", "share"), [("translate_y", 0, 0.25), ("translate_x", 1, 0.2)])
def test_a_translation_moves_whole_pixels_and_fills_what_comes_in(name, axis, share):
    pixels = round(share * COLOURS.shape[axis])
    found = np.moveaxis(moved(name, strength=share / 0.45), axis, 0)
    line = np.moveaxis(COLOURS, axis, 0)
    np.testing.assert_allclose(found[:-pixels], line[pixels:], atol=2e-3)
    np.testing.assert_allclose(found[-pixels:], FILL, atol=2e-3)


def test_turning_there_and_back_again_is_nothing_and_a_turn_is_that_of_pillow():
    which = jnp.stack([chosen("rotate", 1)] * 2)
    image = np.asarray(Image.fromarray(COLOURS).resize((41, 41), Image.Resampling.BICUBIC), np.float32)
    images = jnp.asarray(image)[None]
    same = randaugment.move(images, which, jnp.array([[1.0], [-1.0]]), 0.7)[0]
    np.testing.assert_allclose(same, image, atol=1e-2)
    one = jnp.stack([chosen("rotate", 1), chosen("identity", 1)])
    found = np.asarray(randaugment.move(images, one, jnp.ones((2, 1)), 1.0)[0])
    picture = Image.fromarray(image.astype(np.uint8))
    turns = [np.asarray(picture.rotate(angle, Image.Resampling.BILINEAR), np.float32) for angle in (30, -30)]
    middle = slice(12, 29)  # away from the border
    assert min(np.abs(found - turn)[middle, middle].max() for turn in turns) < 2.5


def test_shears_move_lines_against_each_other():
    found = moved("shear_x", strength=1.0)
    height = COLOURS.shape[0]
    for row in range(height):
        shift = 0.3 * (row - (height - 1) / 2)
        columns = np.arange(COLOURS.shape[1]) + shift
        low = np.floor(columns).astype(int)
        part = (columns - low)[:, None]
        padded = np.full((40, 3), FILL)
        padded[15 : 15 + COLOURS.shape[1]] = COLOURS[row]
        np.testing.assert_allclose(found[row], (1 - part) * padded[15 + low] + part * padded[16 + low], atol=1e-2)


def test_a_square_is_cut_out_of_the_images_that_are_chosen():
    images = jnp.zeros((200, 12, 10, 3))
    out = np.asarray(randaugment.cut_out(KEY, images, jnp.arange(200) % 2 == 0, 0.4)) == FILL
    assert not out[1::2].any()
    areas = out[::2].all(axis=3).sum(axis=(1, 2))
    assert areas.max() == 16
    assert areas.min() >= 4


def test_randaugment_is_a_function_of_its_key_and_level_0_hardly_changes_an_image():
    images = jnp.asarray(np.stack([COLOURS] * 64))
    run = jax.jit(randaugment.randaugment, static_argnums=2)
    first, again, other = run(KEY, images, 9), run(KEY, images, 9), run(jax.random.key(4), images, 9)
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 50
    assert 0 <= first.min() <= first.max() <= 255
    kinds = {image.tobytes() for image in np.asarray(first)}
    assert len(kinds) > 40  # images of a batch draw their own
    one_channel = run(KEY, images[..., :1], 9)
    assert one_channel.shape == (64, 12, 10, 1)


# ---- mixtures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.3, 1.0)])
def test_a_mixture_has_the_share_of_each_image_that_its_labels_have(mixup, cutmix):
    config = ConvNetConfig(mixup=mixup, cutmix=cutmix)
    images = jnp.stack([jnp.zeros((9, 7, 1)), jnp.ones((9, 7, 1))])
    mixes = jax.vmap(lambda key: mixing.draw(key, config))(jax.random.split(KEY, 300))
    mixed = jax.vmap(lambda mix: mixing.mixed(images, mix))(mixes)
    np.testing.assert_allclose(mixed[:, 0].mean(axis=(1, 2, 3)), 1 - mixes[:, 0], atol=1e-5)
    np.testing.assert_allclose(mixed[:, 1].mean(axis=(1, 2, 3)), mixes[:, 0], atol=1e-5)
    cut = np.asarray(mixes[:, 1] > 0)
    assert cut.all() == (not mixup)
    assert cut.any() == bool(cutmix)
    inside = np.asarray(mixed[:, 0])
    flat = np.isclose(inside, inside[:, :1, :1], atol=1e-6).all(axis=(1, 2, 3))
    assert flat[~cut].all()
    assert not cutmix or flat[cut].mean() < 0.3


def test_the_share_of_mixup_is_that_of_the_beta_distribution():
    scipy = pytest.importorskip("scipy.stats")
    shares = jax.vmap(lambda key: mixing.draw(key, ConvNetConfig(mixup=0.4))[0])(jax.random.split(KEY, 2000))
    drawn = scipy.beta(0.4, 0.4).rvs(20_000, random_state=0)
    assert scipy.ks_2samp(np.asarray(shares), np.maximum(drawn, 1 - drawn)).pvalue > 1e-3
