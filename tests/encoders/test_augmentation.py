"""Augmentation against plain slicing and resizing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.encoders import augmentation

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


@pytest.mark.parametrize("size", [(12, 10), (5, 7), (24, 20)])
@pytest.mark.slow
def test_crop_and_resize_equals_cutting_then_resizing(size):
    whole = augmentation.crop_and_resize(PICTURE, jnp.array([[0, 0, 12, 10]]), size)
    np.testing.assert_allclose(
        whole[0], jax.image.resize(PICTURE[0].astype(jnp.float32), (*size, 3), "linear"), atol=1e-2
    )
    boxes = jnp.array([[0, 0, 3, 4], [5, 2, 7, 8], [11, 9, 1, 1]])
    out = augmentation.crop_and_resize(MANY[:3], boxes, size)
    for image, (top, left, height, width) in zip(out, boxes.tolist(), strict=True):
        cut = PICTURE[0, top : top + height, left : left + width].astype(jnp.float32)
        np.testing.assert_allclose(image, jax.image.resize(cut, (*size, 3), "linear"), atol=1e-2)


def test_center_crop_takes_the_middle():
    np.testing.assert_array_equal(augmentation.center_crop(PICTURE, (8, 4)), np.asarray(PICTURE)[:, 2:10, 3:7])
