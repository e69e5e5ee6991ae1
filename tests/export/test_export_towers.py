"""Two towers as two exported models of one space, and one rotation for both."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from mrl_jax.data import PairDataset, Pairs
from mrl_jax.data.captioned import CaptionedImages
from mrl_jax.encoders import ENCODERS, TransformerConfig
from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.export import FORMATS, check_format, onnx, rotation, towers
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from tests.encoders.test_towers import IMAGES, TEXTS, TOWERS, WIDTH, model


@pytest.fixture(scope="module")
def both() -> EmbeddingModel:
    return model()


@pytest.mark.parametrize("name", ["onnx", pytest.param("stablehlo", marks=pytest.mark.slow)])
def test_each_file_gives_the_vectors_of_its_side(both: EmbeddingModel, name: str, tmp_path: Path) -> None:
    usage, outcome = towers.write(both, tmp_path, "made", FORMATS[name].write)
    assert outcome.count("largest difference to the run") == 2
    assert "made/text/tokenizer.json" in usage
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    pixels = ImageRule.load(tmp_path / "image").prepare(picture)[None]  # as images.json says
    tokens = Tokenizer.from_file(str(tmp_path / "text" / "tokenizer.json")).encode_batch(TEXTS)
    arrays = {
        "image": {"image": pixels},
        "text": {
            "input_ids": np.array([one.ids for one in tokens]),
            "attention_mask": np.array([one.attention_mask for one in tokens]),
        },
    }
    for side, raw in (("text", TEXTS), ("image", [picture])):
        if name == "onnx":
            session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / side / "model.onnx"))
            (z,) = session.run(None, arrays[side])
        else:
            from jax import export

            call = export.deserialize(bytearray((tmp_path / side / "model.stablehlo").read_bytes())).call
            z = np.asarray(call(*(x.astype(np.int32) if side == "text" else x for x in arrays[side].values())))
        for dim in both.dims:
            prefix = z[:, :dim] / np.linalg.norm(z[:, :dim], axis=1, keepdims=True)
            np.testing.assert_allclose(prefix, both.encode(raw, dim), atol=1e-5)


def test_one_rotation_is_fitted_on_both_sides_alike(
    both: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Σ z zᵀ over as many captions as pictures becomes diagonal and falls; products across the sides stay."""
    pairs = Pairs(CaptionedImages(TEXTS, IMAGES), np.array([[0, 3], [1, 4], [2, 5], [0, 6]], np.int32))
    monkeypatch.setattr(rotation, "configuration", SimpleNamespace(from_yaml=lambda path: SimpleNamespace(data=None)))
    monkeypatch.setattr(rotation.runs, "find", Path)
    monkeypatch.setattr(rotation.data, "load", lambda config: PairDataset("p", "image-text", pairs, pairs, pairs))
    z = rotation.training_embeddings(tmp_path, both)
    expected = np.concatenate([both.encode([TEXTS[i] for i in (0, 1, 2, 0)]), both.encode(IMAGES)])
    np.testing.assert_allclose(z, expected, atol=1e-6)
    turned = rotation.rotate(both, z)
    words, pictures = turned.encode(TEXTS), turned.encode(IMAGES)
    np.testing.assert_allclose(words @ pictures.T, both.encode(TEXTS) @ both.encode(IMAGES).T, atol=1e-5)
    both_sides = np.concatenate([words[[0, 1, 2, 0]], pictures])
    energy = both_sides.T @ both_sides
    np.testing.assert_allclose(energy, np.diag(np.diag(energy)), atol=1e-4)
    assert (np.diff(np.diag(energy)) <= 1e-5).all()
    sides = towers.sides(turned)
    np.testing.assert_allclose(sides["image"].encode(IMAGES), pictures, atol=1e-6)
    assert sides["text"].program.width == WIDTH


@pytest.mark.parametrize(
    ("to", "changed", "message"),
    [
        (
            "sentence-transformers",
            {},
            "cannot hold the two towers of encoder=towers; allowed here: onnx, onnx-int8, st",
        ),
        (
            "onnx",
            {"image": ENCODERS["convnet"].config()},
            r"cannot hold encoder.image=convnet \(its graph is not written\); allowed here: stablehlo$",
        ),
        ("onnx", {"text": TransformerConfig()}, None),
    ],
)
def test_a_tower_that_a_format_cannot_hold_is_named(to: str, changed: dict, message: str | None) -> None:
    config = dataclasses.replace(TOWERS, **changed)
    if message is None:
        check_format(to, config)
        return
    with pytest.raises(UserError, match=message):
        check_format(to, config)


def test_a_tower_that_computes_something_else_is_not_written(
    both: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="the exported model differs from the run"):
        towers.write(both, tmp_path, "made", onnx.write)
