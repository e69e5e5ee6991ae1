"""Vision transformers as folders of transformers: read again by our own reader, which is that of transformers to 1e-5
(tests/encoders/test_vit.py), and by transformers itself where it is installed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrl_jax import encoders
from mrl_jax.config import LossConfig, OptimizerConfig
from mrl_jax.encoders.vit import ViTConfig
from mrl_jax.export import vision
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.pair_objectives import ContrastiveObjective
from mrl_jax.training.step import TrainStep
from tests import vision_folders
from tests.vision_folders import CONFIGS

IMAGES = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
SCRATCH = ViTConfig(patch=4, layers=2, hidden=8, heads=2, intermediate=16)


def model(config: ViTConfig, width: int = 8, images: np.ndarray = IMAGES) -> EmbeddingModel:
    """An untrained model."""
    reader = encoders.fit(config, "made", "image", images)
    program = TrainStep(
        encoder=config, inputs={"image": reader(images)["image"][np.arange(1)].shape[1:]}, vocabulary=0, width=width,
        objective=ContrastiveObjective((width,), 2, LossConfig(name="info_nce")), optimizer_config=OptimizerConfig(),
        steps=1,
    )  # fmt: skip
    return EmbeddingModel(program, program.init(0).model, reader, (2, width), "separate")


def check(of: EmbeddingModel, folder: Path) -> None:
    usage, _ = vision.write(of, folder, str(folder))
    again = model(ViTConfig(weights=str(folder)), of.program.width)
    pictures = [Image.fromarray(np.kron(image, np.ones((3, 2, 1), np.uint8))) for image in IMAGES]
    expected = of.encode(pictures)
    np.testing.assert_allclose(again.encode(pictures), expected, atol=1e-5)
    pytest.importorskip("transformers")
    scope: dict[str, Any] = {}
    exec(
        usage.partition("z = torch.nn")[0].replace('[Image.new("RGB", (300, 200))]', "pictures"),
        {"pictures": pictures},
        scope,
    )
    z = scope["z"].numpy()
    np.testing.assert_allclose(z / np.linalg.norm(z, axis=1, keepdims=True), expected, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_on_weights_is_written_as_such_weights(name: str, tmp_path: Path) -> None:
    folder = vision_folders.write(tmp_path / "given", CONFIGS[name], vision_folders.make(name))
    check(model(ViTConfig(weights=str(folder)), 6 if name == "clip" else 8), tmp_path / "made")


def test_a_run_from_scratch_is_written_where_it_has_the_parts_of_one(tmp_path: Path) -> None:
    check(model(dataclasses.replace(SCRATCH, pooling="cls")), tmp_path / "made")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "vit has a class token there; train it with encoder.pooling=cls"),
        ({"pooling": "cls", "registers": 2}, "encoder.registers are parts of encoder.family=dinov2 there, not of vit"),
        (
            {"pooling": "cls", "projection": True},
            r"no last linear map there \(encoder.projection=true\); --to=onnx has",
        ),
        (
            {"pooling": "cls", "family": "dinov2", "intermediate": 13},
            "encoder.intermediate=13 is no multiple of encoder.hidden=8, as in dinov2",
        ),
    ],
)
def test_parts_that_transformers_has_not_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        vision.write(model(dataclasses.replace(SCRATCH, **changed)), tmp_path, "made")


def test_pictures_that_are_scaled_to_cover_no_square_are_refused(tmp_path: Path) -> None:
    """Though the encoder reads a square of them: another scale would be another input."""
    wide = model(dataclasses.replace(SCRATCH, pooling="cls", image_size=8), images=np.zeros((2, 8, 12, 3), np.uint8))
    with pytest.raises(UserError, match="its pictures are scaled to cover 8 × 12 pixels, and those of transformers a"):
        vision.write(wide, tmp_path, "made")
