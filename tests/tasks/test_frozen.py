"""Frozen encoders: their output is made once, and what is learnt on it is what is learnt on the texts."""

import json
from pathlib import Path
from typing import Any

import model_folders
import numpy as np
import pytest
from helpers import write_table

import mrl_jax
from mrl_jax import train
from mrl_jax.tasks import frozen

WORDS = ("fox", "dog", "cafe", "lazy", "quick", "stocks")
ROWS = [{"text": f"{a} {b} the", "label": a} for a in WORDS[:3] for b in WORDS] * 2
PAIRS = [{"anchor": f"{a} {b} the", "positive": f"the {b} {a}"} for a in WORDS for b in WORDS if a != b]
SETTINGS = [
    "encoder=transformer", "encoder.frozen=true", "encoder.projection=true", "encoder.dropout=0",
    "encoder.attention_dropout=0", "width=8", "nesting_dims=[4,8]", "trainer.steps=6", "trainer.batch_size=8",
    "recipe=none", "data.validation_fraction=0.2", "evaluation.refit=null", "evaluation.neighbours=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 16 dims, texts with labels, and pairs."""
    folder = tmp_path_factory.mktemp("frozen")
    model_folders.make(folder / "model")
    write_table(folder / "rows.jsonl", ROWS)
    write_table(folder / "pairs.jsonl", PAIRS[5:])
    write_table(folder / "test.jsonl", PAIRS[:5])
    return folder


def run(place: Path, name: str, source: str, *words: str) -> Path:
    train_file, test_file = ("rows.jsonl",) * 2 if source == "files" else ("pairs.jsonl", "test.jsonl")
    files = [f"data={source}", f"data.train={place / train_file}", f"data.test={place / test_file}"]
    files += [f"data.cache_dir={place / 'cache'}"]
    loss = ["loss.name=info_nce"] if source == "pairs" else ["evaluation.baseline=none"]
    where = [f"encoder.weights={place / 'model'}", f"results_dir={place / 'out'}", f"name={source}", f"run={name}"]
    assert train.main([*files, *loss, *SETTINGS, *where, *words]) == 0
    return place / "out" / source / name


@pytest.mark.parametrize("source", ["files", "pairs"])
def test_a_frozen_encoder_reads_every_text_once_and_nothing_else_changes(
    place: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = run(place, "once", source)
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "embed_once", lambda config, reader, examples, name: examples)
        always = run(place, "always", source)
    texts = [next(iter(row.values())) for row in (ROWS if source == "files" else PAIRS)]
    ours, theirs = (mrl_jax.load(str(directory)).encode(texts) for directory in (once, always))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for name in ("dataset.json", "tokenizer.json"):
        assert (once / name).read_bytes() == (always / name).read_bytes()
    lines = [(d / "evaluation.csv").read_text().splitlines() for d in (once, always)]
    assert [line.rsplit(",", 1)[0] for line in lines[0]] == [line.rsplit(",", 1)[0] for line in lines[1]]
    values = [[float(line.rsplit(",", 1)[1]) for line in table[1:]] for table in lines]
    np.testing.assert_allclose(*values, atol=0.03)  # of some 30 examples, rounding may tip one

    def made(*_: Any) -> None:
        raise AssertionError("the texts are embedded again")

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "_pooled", made)
        again = run(place, "again", source, "optimizer.learning_rate=0.01", "encoder.dropout=0.5")
    assert json.loads((again / "dataset.json").read_text())["inputs"].keys() == {"ids", "mask"}


def test_other_settings_of_the_encoder_and_of_its_folder_are_embedded_anew(place: Path, tmp_path: Path) -> None:
    def stored() -> int:
        return len(list((place / "cache").rglob("frozen-*")))

    run(place, "first", "files")
    before = stored()
    run(place, "pooled", "files", "encoder.pooling=cls")
    assert stored() > before
    other = tmp_path / "model"
    model_folders.make(other)
    settings = json.loads((other / "1_Pooling" / "config.json").read_text()) | {"pooling_mode": "max"}
    (other / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    before = stored()
    run(place, "other", "files", f"encoder.weights={other}")
    assert stored() > before
