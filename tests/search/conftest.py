"""Runs on pictures that tests of search share: two towers, and a classifier of pictures."""

from types import SimpleNamespace

import pytest

from mrl_jax import train
from tests.image_text_files import COLOURS, encoded, table

VIT = "name: vit, patch: 4, layers: 1, hidden: 16, heads: 2, intermediate: 16, projection: true"
SHORT = (
    "width=16", "nesting_dims=[4,16]", "trainer.batch_size=16", "trainer.steps=8", "trainer.evaluations=1",
    "optimizer.learning_rate=0.02", "arms=[mrl]", "data.image_size=8", "run=run", "recipe=none",
)  # fmt: skip


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`run`, of two towers, and the `folder` with train.jsonl, test.jsonl and the pictures that they name."""
    folder = tmp_path_factory.mktemp("towers")
    words = [
        *("data=image_text", f"data.train={table(folder, 'train', 5)}", f"data.test={table(folder, 'test', 3)}"),
        *(f"encoder.image={{{VIT}}}", "encoder.text.hidden=16", "loss.name=info_nce", "evaluation.interpolated=false"),
        *(f"data.cache_dir={folder / 'cache'}", "name=towers", f"results_dir={folder / 'results'}"),
    ]
    assert train.main([*words, *SHORT]) == 0
    return SimpleNamespace(run=folder / "results" / "towers" / "run", folder=folder)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`run`, of a vision transformer with the classes red, green, …, and the `folder` of its pictures."""
    folder = tmp_path_factory.mktemp("classifier")
    for name, rgb in COLOURS.items():
        for i in range(6):
            path = folder / ("test" if i > 3 else "train") / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded((*rgb[:2], (rgb[2] + 9 * i) % 256)))
    words = [
        *("data=images", f"data.train={folder / 'train'}", f"data.test={folder / 'test'}"),
        *("encoder=vit", *(f"encoder.{key}" for key in VIT.replace(": ", "=").split(", ")[1:])),
        *(f"data.cache_dir={folder / 'cache'}", "name=vit", f"results_dir={folder / 'results'}"),
        *("evaluation.neighbours=false", "evaluation.refit=null", "data.validation_fraction=0.3"),
    ]
    assert train.main([*words, *SHORT]) == 0
    return SimpleNamespace(run=folder / "results" / "vit" / "run", folder=folder)
