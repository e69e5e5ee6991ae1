"""A run on a folder of images with a pretrained vision transformer, and its use without that."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrl_jax
from mrl_jax import train
from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.export.rotation import training_embeddings
from tests import vision_folders

RANDOM = np.random.default_rng(0)
BICUBIC = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 10}, "crop_size": 8}


def test_a_run_on_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on files of many sizes with augmentation, loaded without its weights, given paths and pictures."""
    monkeypatch.setattr(vision_folders, "PREPROCESSOR", BICUBIC)
    folder = vision_folders.write(tmp_path / "vit", vision_folders.CONFIGS["vit"], vision_folders.make("vit"))
    for split in ("train", "test"):
        for number, name in enumerate(("red", "green")):
            for i in range(8):
                pixels = RANDOM.integers(0, 90, (*RANDOM.integers(9, 30, 2), 3))
                pixels[..., number] += 150
                path = tmp_path / split / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    words = [f"data.{split}={tmp_path / split}" for split in ("train", "test")]
    words += [
        f"data.cache_dir={tmp_path / 'cache'}",
        f"encoder.weights={folder}",
        f"results_dir={tmp_path / 'results'}",
    ]
    words += ["encoder.augment=flip", "encoder.randaugment=3", "encoder.mixup=0.2", "encoder.cutmix=1", "run=a"]
    words += ["width=8", "nesting_dims=[4,8]", "arms=[mrl]", "trainer.steps=2", "trainer.batch_size=4", "name=images"]
    words += ["evaluation.neighbours=false", "data.streaming=true", "data.validation_fraction=0.25"]
    assert train.main(["data=images", "encoder=vit", *words]) == 0
    shutil.rmtree(folder)
    model = mrl_jax.load(tmp_path / "results" / "images" / "a")
    assert isinstance(model.reader, ImageRule)
    assert (model.reader.how, model.reader.size, model.reader.crop) == ("shortest", (10, 10), (8, 8))
    paths = sorted((tmp_path / "test").rglob("*.jpg"))
    z = model.encode(paths, dim=4)
    assert z.shape == (16, 4)
    np.testing.assert_array_equal(model.encode([Image.open(path) for path in paths], dim=4), z)
    np.testing.assert_allclose(model.encode(map(str, paths[:3]), dim=4), z[:3], atol=1e-5)
    assert set(model.predict(paths)[0]) <= {"red", "green"}
    assert training_embeddings(tmp_path / "results" / "images" / "a", model).shape == (12, 8)
