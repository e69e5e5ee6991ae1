"""The vision transformer against NumPy in float64, and against transformers where it is installed."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mrl_jax import encoders
from mrl_jax.encoders import positions, vit_onnx
from mrl_jax.encoders.layers import frozen
from mrl_jax.encoders.onnx_graph import Graph
from mrl_jax.encoders.vit import ViT, ViTConfig
from mrl_jax.system.errors import UserError
from tests import vision_folders
from tests.vision_folders import CONFIGS

RANDOM = np.random.default_rng(1)
IMAGES = RANDOM.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
TINY: dict[str, Any] = {"patch": 4, "layers": 1, "hidden": 8, "heads": 2, "intermediate": 12}


def embed(config: ViTConfig, images: np.ndarray, width: int = 8, seed: int = 0) -> np.ndarray:
    """What the encoder gives for images that are prepared."""
    module = ViT(config, inputs={"image": images.shape[1:]}, vocabulary=0, width=width, rngs=nnx.Rngs(seed))
    return np.asarray(frozen(module)({"image": jnp.asarray(images)}))


def of_folder(folder: Path, images: Any, width: int = 8, **settings: Any) -> np.ndarray:
    """What the encoder of a folder gives for images of any size."""
    config = ViTConfig(weights=str(folder), **settings)
    return embed(
        config,
        np.asarray(encoders.fit(config, "made", "image", images)(images)["image"][np.arange(len(images))]),
        width,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_embeds_as_its_formula_in_float64(name: str, tmp_path: Path) -> None:
    tensors = vision_folders.make(name)
    folder = vision_folders.write(tmp_path / name, CONFIGS[name], tensors)
    z = of_folder(folder, IMAGES, 6 if name == "clip" else 8)
    expected = np.stack([vision_folders.oracle(name, tensors, image) for image in IMAGES])
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_embeds_as_transformers(name: str, size: int, tmp_path: Path) -> None:
    """At another size, with positions interpolated as transformers does it."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = vision_folders.write(tmp_path / name, CONFIGS[name], vision_folders.make(name))
    of = {
        "vit": "ViTModel",
        "dinov2": "Dinov2Model",
        "dinov2_swiglu": "Dinov2Model",
        "dinov2_with_registers": "Dinov2WithRegistersModel",
        "clip_vision_model": "CLIPVisionModel",
        "clip": "CLIPVisionModelWithProjection",
        "siglip_vision_model": "SiglipVisionModel",
        "siglip": "SiglipVisionModel",
    }
    model = getattr(transformers, of[name]).from_pretrained(folder, attn_implementation="eager").eval()
    images = RANDOM.integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    mean, std = (np.float32(vision_folders.PREPROCESSOR[key]) for key in ("image_mean", "image_std"))
    pixels = torch.tensor(((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    options = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": size != 8}
    with torch.no_grad():
        out = model(pixels, **options)
    expected = out.image_embeds if name == "clip" else out.pooler_output if "siglip" in name else None
    if expected is None:
        expected = out.pooler_output if "clip" in name else out.last_hidden_state[:, 0]
    z = of_folder(folder, images, 6 if name == "clip" else 8, image_size=size)
    np.testing.assert_allclose(z, expected.numpy(), rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(37, 16), (7, 24), (14, 15), (3, 3)])
def test_positions_are_interpolated_as_by_torch(old: int, new: int, antialias: bool) -> None:
    torch = pytest.importorskip("torch")
    table = RANDOM.normal(size=(old * old, 5)).astype(np.float32)
    grid = torch.tensor(table.reshape(1, old, old, 5).transpose(0, 3, 1, 2))
    expected = torch.nn.functional.interpolate(
        grid, (new, new), mode="bicubic", align_corners=False, antialias=antialias
    )
    ours = positions.resample(table, (old, old), (new, new), antialias)
    np.testing.assert_allclose(ours.reshape(new, new, 5).transpose(2, 0, 1), expected[0], atol=1e-5)


def test_interpolation_keeps_a_constant_and_the_middle_of_a_line() -> None:
    for antialias in (False, True):
        for old, new in ((37, 16), (7, 24)):
            weights = positions.bicubic(old, new, antialias)
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
            line = weights @ np.arange(old)
            inside = slice(new // 4, new - new // 4)
            np.testing.assert_allclose(line[inside], ((np.arange(new) + 0.5) * old / new - 0.5)[inside], atol=0.1)


def test_positions_of_sines_are_those_of_the_formula() -> None:
    table = positions.sincos((2, 3), 8)
    for y in range(2):
        for x in range(3):
            expected = [f(p / 10_000.0**i) for p in (x, y) for f in (np.sin, np.cos) for i in (0, 1)]
            np.testing.assert_allclose(table[3 * y + x], expected, atol=1e-6)


def test_patches_are_a_strided_convolution() -> None:
    config = ViTConfig(**TINY)
    module = ViT(config, inputs={"image": (8, 12, 3)}, vocabulary=0, width=8, rngs=nnx.Rngs(0))
    pixels = jnp.asarray(RANDOM.normal(size=(2, 8, 12, 3)), jnp.float32)
    kernel = module.patches.kernel[...].reshape(4, 4, 3, 8)
    map_ = jax.lax.conv_general_dilated(pixels, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    expected = map_.reshape(2, 6, 8) + positions.sincos((2, 3), 8)
    np.testing.assert_allclose(module.embedded(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"pooling": "cls", "position": "learned", "registers": 2}, {"pooling": "attention"}]
)
def test_every_token_and_parameter_counts(settings: dict[str, Any]) -> None:
    """A change of any patch changes the vector, and every parameter has a gradient."""
    config = ViTConfig(**TINY, layer_scale=0.5, **settings)
    module = ViT(config, inputs={"image": (8, 8, 3)}, vocabulary=0, width=8, rngs=nnx.Rngs(0))
    graph, params = nnx.split(module)
    factors = jnp.asarray(RANDOM.normal(size=8), jnp.float32)

    def total(params: Any, images: jax.Array) -> jax.Array:
        return (nnx.merge(graph, params)({"image": images})[0] * factors).sum()

    by_parameter, by_pixel = jax.jit(jax.grad(total, argnums=(0, 1)))(params, jnp.asarray(IMAGES[:1], jnp.float32))
    assert all(
        np.abs(g).max() > 0 for path, g in jax.tree.leaves_with_path(by_parameter) if "key" not in str(path[-3:])
    )
    assert (np.abs(by_pixel).reshape(2, 4, 2, 4, 3).max((1, 3, 4)) > 0).all()


def test_remat_changes_no_gradient_and_dropout_rates_are_arguments() -> None:
    def gradient(**settings: Any) -> Any:
        config = ViTConfig(**{**TINY, "layers": 2}, **settings)
        module = ViT(config, inputs={"image": (8, 8, 3)}, vocabulary=0, width=8, rngs=nnx.Rngs(0))
        graph, params = nnx.split(module)

        @jax.jit
        def run(params: Any, rate: jax.Array) -> Any:
            def total(params: Any) -> jax.Array:
                made = nnx.merge(graph, params)
                encoders.set_rates(config, made, {"dropout": rate})
                return made({"image": jnp.asarray(IMAGES)}, rngs=nnx.Rngs(dropout=1))[:, 0].sum()

            return jax.grad(total)(params)

        return run(params, jnp.float32(0)), run(params, jnp.float32(0.4))

    plain, dropped = gradient()
    again, _ = gradient(remat=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)
    assert any(not np.allclose(a, b) for a, b in zip(*map(jax.tree.leaves, (plain, dropped)), strict=True))


def test_a_trained_model_of_a_folder_is_rebuilt_without_it(tmp_path: Path) -> None:
    folder = vision_folders.write(tmp_path / "dinov2", CONFIGS["dinov2"], vision_folders.make("dinov2"))
    config = ViTConfig(weights=str(folder), image_size=16)
    module = ViT(config, inputs={"image": (16, 16, 3)}, vocabulary=0, width=8, rngs=nnx.Rngs(0))
    _, params = nnx.split(module, nnx.Param)  # type: ignore[misc]
    alone, vocabulary = encoders.standalone(config, 0)
    assert (alone.weights, vocabulary) == (None, 0)
    rebuilt = ViT(alone, inputs={"image": (16, 16, 3)}, vocabulary=0, width=8, rngs=nnx.Rngs(7))
    graph, other = nnx.split(rebuilt, nnx.Param)  # type: ignore[misc]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, other)
    images = {"image": jnp.asarray(RANDOM.integers(0, 256, (2, 16, 16, 3)), jnp.uint8)}
    np.testing.assert_array_equal(nnx.merge(graph, params)(images), module(images))
    assert len(str(encoders.digest(config))) == 64


def test_other_poolings_of_a_folder(tmp_path: Path) -> None:
    tensors = vision_folders.make("siglip")
    folder = vision_folders.write(tmp_path / "siglip", CONFIGS["siglip"], tensors)
    of_head, of_mean = of_folder(folder, IMAGES), of_folder(folder, IMAGES, pooling="mean")
    assert np.abs(of_head - of_mean).max() > 0.1
    with pytest.raises(UserError, match=r"encoder.pooling=cls needs a class token"):
        of_folder(folder, IMAGES, pooling="cls")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "relu", 'hidden_act="relu" is not supported; allowed: gelu'),
        ("qkv_bias", False, "qkv_bias=false is not supported; allowed: true"),
        ("patch_size", 0, "patch_size=0 is not allowed; a whole number from 1"),
        ("num_channels", 1, "num_channels=1 is not supported; allowed: 3"),
        ("num_hidden_layers", 1, "which a vit encoder of 1 layers does not have"),
        ("num_hidden_layers", 3, "has no tensor encoder.layer.2"),
        ("intermediate_size", 11, "but config.json asks for"),
        ("hidden_size", 9, "hidden_size=9 has to be a multiple of num_attention_heads=2"),
        ("model_type", "swin", 'model_type="swin" is not supported by encoder=vit; allowed: clip'),
    ],
)
def test_a_setting_that_is_not_built_is_refused_by_name(key: str, value: Any, message: str, tmp_path: Path) -> None:
    folder = vision_folders.write(tmp_path / "vit", {**CONFIGS["vit"], key: value}, vision_folders.make("vit"))
    with pytest.raises(UserError, match=message):
        of_folder(folder, IMAGES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 3}, "encoder.patch=3 does not divide images of 8 × 8 pixels"),
        ({"heads": 3}, "encoder.heads=3 is not allowed; a divisor of encoder.hidden=8"),
        ({"hidden": 6, "heads": 1}, "a multiple of 4"),
        ({"image_size": 12}, "encoder.image_size=12 is not allowed; at most"),
        ({"pooling": "max"}, "encoder.pooling=max is unknown"),
        ({"pooling": "cls", "class_token": False}, "needs a class token"),
        ({"family": "swin"}, "encoder.family=swin is unknown"),
        ({"std": (0.0,)}, "must be greater than 0"),
        ({"mean": (0.0, 1.0)}, "one for each of 3 channels"),
        ({"augment": "crop"}, "encoder.augment=crop is unknown"),
        ({"attention": "fused", "attention_dropout": 0.1}, "is not allowed with encoder.attention=fused"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        embed(ViTConfig(**{**TINY, **settings}), IMAGES)


def test_settings_that_weights_do_not_have_are_refused(tmp_path: Path) -> None:
    folder = vision_folders.write(tmp_path / "clip", CONFIGS["clip"], vision_folders.make("clip"))
    with pytest.raises(UserError, match=r"encoder.layers=3 is not allowed; encoder.weights=.* have 2"):
        of_folder(folder, IMAGES, 6, layers=3)
    with pytest.raises(UserError, match=r"width=8 is not allowed; encoder.weights=.* have 6"):
        of_folder(folder, IMAGES, 8)
    with pytest.raises(UserError, match=r"cannot be divided into patches of 4; give encoder.image_size"):
        of_folder(folder, IMAGES, 6, image_size=10)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match="vision_config=null is not allowed"):
        encoders.vit.vit_folder.describe.__wrapped__(folder)


@pytest.mark.parametrize(("name", "pooling"), [*((name, None) for name in CONFIGS), ("dinov2_with_registers", "mean")])
def test_the_onnx_graph_of_a_folder_computes_the_same(name: str, pooling: Any, tmp_path: Path) -> None:
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    folder = vision_folders.write(tmp_path / name, CONFIGS[name], vision_folders.make(name))
    config, width = ViTConfig(weights=str(folder), pooling=pooling), 6 if name == "clip" else 8
    module = ViT(config, inputs={"image": (8, 8, 3)}, vocabulary=0, width=width, rngs=nnx.Rngs(0))
    _, params, _ = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    graph, rule = Graph(), encoders.fit(config, "made", "image", IMAGES)
    z = vit_onnx.onnx(graph, config, rule, nnx.to_pure_dict(params))
    made = [
        onnx.helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("image", onnx.TensorProto.UINT8, ("batch", 8, 8, 3)),
            (z, onnx.TensorProto.FLOAT, ("batch", width)),
        )
    ]
    content = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "vit", made[:1], made[1:], graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(content.SerializeToString())
    expected = np.asarray(frozen(module)({"image": jnp.asarray(IMAGES)}))
    np.testing.assert_allclose(session.run(None, {"image": IMAGES})[0], expected, atol=1e-5 * np.abs(expected).max())
