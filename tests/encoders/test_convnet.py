"""The residual network against published parameter counts and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mrl_jax.encoders import convnet
from mrl_jax.encoders.convnet import ConvNet, ConvNetConfig
from mrl_jax.system.errors import UserError

SMALL = (28, 28, 1)


def build(shape=SMALL, width=8, seed=0, **config):
    config = ConvNetConfig(**{"channels": 4, **config})
    return ConvNet(config, inputs={"image": shape}, vocabulary=0, width=width, rngs=nnx.Rngs(seed))


def images(count=4, shape=SMALL, seed=0):
    return jnp.array(np.random.default_rng(seed).integers(0, 256, (count, *shape)), jnp.uint8)


def split(module):
    """Graph, parameters and batch statistics as plain dictionaries: no other state may exist."""
    graph, params, statistics = nnx.split(module, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize(
    ("shape", "stem", "depth"),
    [
        (SMALL, "small", 18),
        (SMALL, "strided", 18),
        pytest.param((32, 32, 3), "small", 50, marks=pytest.mark.slow),
        ((64, 64, 3), "imagenet", 18),
    ],
)
def test_embeddings_are_float32_of_the_width_asked_for(shape, stem, depth):
    z = build(shape, stem=stem, depth=depth)({"image": images(2, shape)})
    assert z.shape == (2, 8)
    assert z.dtype == jnp.float32
    assert jnp.isfinite(z).all()


@pytest.mark.parametrize(("depth", "features", "published"), [(18, 512, 11_176_512), (50, 2048, 23_508_032)])
def test_parameter_counts_are_the_published_ones(depth, features, published):
    def make(width):
        return nnx.eval_shape(lambda: build((64, 64, 3), width, depth=depth, channels=64, stem="imagenet"))

    assert count(make(features)) == published
    assert count(make(100)) == published + features * 100 + 100  # the projection to D


def test_without_a_projection_the_embedding_is_the_pooled_backbone():
    assert build(width=32).projection is None  # 8 × 4 channels
    z = build(width=32)({"image": images()})
    assert (z >= 0).all()
    assert z.max() > 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_tiny_maps_convolve_like_larger_ones(side, stride):
    rng = np.random.default_rng(side)
    x, kernel = rng.normal(size=(2, side, side, 3)), rng.normal(size=(3, 3, 3, 5))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = -(-side // stride)
    expected = np.zeros((2, out, out, 5))
    for i in range(out):
        for j in range(out):
            patch = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            expected[:, i, j] = np.einsum("bijc,ijcn->bn", patch, kernel)
    got = convnet.convolve(jnp.array(x, jnp.float32), jnp.array(kernel, jnp.float32), stride)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_every_residual_branch_starts_as_nothing():
    for block in build(depth=50).blocks:
        assert not block.branch[-1].norm.scale[...].any()
        assert block.branch[0].norm.scale[...].all()
    block = build().blocks[0]  # no shortcut: relu(x + 0)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    np.testing.assert_array_equal(block(x, False), nnx.relu(x))


def test_pixels_are_normalised_by_the_mean_and_std_given():
    x = images(4, (28, 28, 3))
    plain = build((28, 28, 3), mean=(0.0,), std=(1.0,))
    scaled = build((28, 28, 3), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    seen = []
    for module in (plain, scaled):
        graph, params, statistics = split(module)
        params["stem"]["kernel"] = jnp.zeros((3, 3, 3, 4)).at[1, 1, :, :3].set(jnp.eye(3))  # the stem hands x on
        module = nnx.merge(graph, params, statistics)
        module.stem.relu = False
        module({"image": x}, rngs=nnx.Rngs(dropout=0))
        seen.append(np.asarray(module.stem.norm.mean[...][:3]) / 0.1)  # momentum 0.9, from zero
    np.testing.assert_allclose(seen[0], np.asarray(x, np.float64).mean((0, 1, 2)) / 255, rtol=1e-4)
    np.testing.assert_allclose(seen[1], (seen[0] - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0], rtol=1e-3)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_state():
    modules = [build(dtype=dtype) for dtype in ("float32", "bfloat16")]
    exact, rounded = (module({"image": images()}, rngs=nnx.Rngs(dropout=0)) for module in modules)
    assert rounded.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(split(modules[1])[1:]))
    assert 0 < jnp.linalg.norm(exact - rounded) < 0.05 * jnp.linalg.norm(exact)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.slow
def test_the_imagenet_stem_passes_gradients_through_its_pool(dtype):
    module = build(stem="imagenet", dtype=dtype)
    graph, params, statistics = split(module)

    @jax.jit
    def gradient(params):
        def total(params):
            return (nnx.merge(graph, params, statistics)({"image": images()}) ** 2).sum()

        return jax.grad(total)(params)

    kernel = gradient(params)["stem"]["kernel"]
    assert jnp.isfinite(kernel).all()
    assert (kernel != 0).any()


# Batch norm


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batch_norm_equals_numpy_in_training(batch):
    norm = convnet.Norm(3, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(3, 2, (batch, 4, 5, 3)).astype(np.float32)
    mean, var = x.astype(np.float64).mean((0, 1, 2)), x.astype(np.float64).var((0, 1, 2))
    y = norm.normalise(jnp.array(x), True)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var, rtol=1e-4)
    y = norm.normalise(jnp.array(x), False)
    np.testing.assert_allclose(y, (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * var + 1e-5), rtol=1e-3, atol=1e-4)


def test_a_single_value_is_normalised_by_the_running_statistics():
    norm = convnet.Norm(3, rngs=nnx.Rngs(0))
    x = jnp.array([1.0, -2.0, 3.0]).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(norm.normalise(x, True), x, rtol=1e-4)  # mean 0, variance 1
    assert not norm.mean[...].any()


def test_one_example_of_one_pixel_can_be_trained_on():
    module = build((8, 8, 1))  # the last maps are 1×1
    z = module({"image": images(1, (8, 8, 1))}, rngs=nnx.Rngs(dropout=0))
    assert jnp.isfinite(z).all()


def test_statistics_move_in_training_only():
    module = build()
    before = split(module)[2]
    module({"image": images()})
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before, split(module)[2]))
    module({"image": images()}, rngs=nnx.Rngs(dropout=0))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a != b).any(), before, split(module)[2]))


def test_an_image_does_not_depend_on_its_batch():
    module, x = build(augment="flip_crop"), images()
    module({"image": x}, rngs=nnx.Rngs(dropout=0))
    whole = module({"image": x})
    for row in range(4):
        np.testing.assert_allclose(module({"image": x[row : row + 1]})[0], whole[row], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(module({"image": x[::-1]})[::-1], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_vmap_over_stacked_parameters_equals_the_loop():
    graph = split(build())[0]
    states = [split(build(seed=seed))[1:] for seed in range(3)]

    @jax.jit
    def train(params, statistics):
        def loss(params):
            module = nnx.merge(graph, params, statistics)
            z = module({"image": images()}, rngs=nnx.Rngs(dropout=0))
            return (z**2).mean(), (z, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))

        return jax.grad(loss, has_aux=True)(params)

    together = jax.vmap(train)(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    for member, state in enumerate(states):
        for a, b in zip(jax.tree.leaves(train(*state)), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(b[member], a, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("augment", ["flip", "flip_crop", "resized_crop"])
@pytest.mark.slow
def test_augmentation_follows_its_key_and_is_off_in_evaluation(augment):
    module, plain = build(augment=augment, crop=24), build(crop=24)
    x = {"image": images()}
    np.testing.assert_array_equal(module(x), plain(x))
    np.testing.assert_array_equal(plain(x), plain({"image": x["image"][:, 2:26, 2:26]}))  # the middle
    graph, params, statistics = split(module)
    a, b, c = (nnx.merge(graph, params, statistics)(x, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"depth": 34}, "encoder.depth=34"),
        ({"channels": 0}, "encoder.channels=0"),
        ({"stem": "imagenett"}, "did you mean imagenet"),
        ({"augment": "mirror"}, "encoder.augment=mirror"),
        ({"dtype": "float16"}, "encoder.dtype=float16"),
        ({"crop": 29}, "encoder.crop=29"),
        ({"mean": (0.5, 0.5)}, "encoder.mean"),
        ({"std": (0.0,)}, "encoder.std"),
    ],
)
def test_wrong_values_die_in_one_sentence(config, says):
    with pytest.raises(UserError, match=says):
        build(**config)


def test_text_cannot_be_read():
    with pytest.raises(UserError, match="needs images, but the data has ids"):
        ConvNet(ConvNetConfig(), inputs={"ids": (5,)}, vocabulary=9, width=4, rngs=nnx.Rngs(0))
