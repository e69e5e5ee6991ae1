"""Products of low rank: they alone learn beside the heads, and an export has them in its matrices."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from model_families import MADE, TEXTS

import mrl_jax
from mrl_jax import config, encoders, train
from mrl_jax.arms import Row
from mrl_jax.config import Config, LossConfig, TrainerConfig
from mrl_jax.data import DataConfig
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.export import onnx, sentence_transformers
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import train_step
from mrl_jax.training.step import TrainStep, Weights

FOLDERS = ["bert", "qwen3"]  # with biases and without


def program_of(folder: Path, **settings: Any) -> tuple[TrainStep, Any]:
    encoder = TransformerConfig(weights=str(folder), dropout=0.0, attention_dropout=0.0, **settings)
    reader = encoders.fit(encoder, "made", "text", TEXTS)
    made = Config(
        data=DataConfig("features"), encoder=encoder, name="made", width=16, nesting_dims=(4, 16), arms=("mrl",),
        seeds=1, loss=LossConfig(), trainer=TrainerConfig(epochs=None, steps=4, batch_size=2),
    )  # fmt: skip
    shapes = {key: x.shape[1:] for key, x in reader(TEXTS).items()}
    description = {"inputs": shapes, "vocabulary": reader.vocabulary, "classes": ["a", "b"], "kind": "text"}
    return train_step(made, description, 4), reader


def flat(weights: Weights) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(weights.params)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


@pytest.fixture(scope="module", params=FOLDERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A program, its reader, its weights before and after two steps, and the folder that it started from."""
    folder = tmp_path_factory.mktemp("lora") / "model"
    replace(MADE[request.param], sizes=replace(MADE[request.param].sizes, layers=1)).write(folder)
    program, reader = program_of(folder, lora_rank=3)
    state = first = program.init(0)
    inputs = reader(["the fox", "a dog", "x"])
    batch = {**inputs, "label": np.array([0, 1, 0], np.int32)}
    row = Row(np.ones((1, 2), np.float32), np.array(False))
    step = jax.jit(program.step)
    for _ in range(2):
        state, measures = step(state, batch, row, jax.random.key(0))
    assert measures.gradient_norm > 0
    return program, reader, first.model, state, folder


def test_the_optimiser_holds_nothing_for_what_does_not_learn(tmp_path: Path) -> None:
    MADE["bert"].write(tmp_path / "model")
    program, _ = program_of(tmp_path / "model", lora_rank=3)
    sizes = {
        jax.tree_util.keystr(path): x.size for path, x in jax.tree_util.tree_leaves_with_path(program.shapes.params)
    }
    learn = [name for name in sizes if "lora" in name or not name.startswith("['encoder']")]
    assert sum("lora_a" in name for name in learn) == 2 * 6  # layers; four matrices of attention, two of feed-forward
    held = jax.tree.leaves(jax.eval_shape(program.optimizer.init, program.shapes.params))
    assert sum(x.size for x in held if x.ndim) == 2 * sum(sizes[name] for name in learn)  # the moments of Adam


@pytest.mark.slow
def test_products_and_heads_learn_and_nothing_else(trained: Any) -> None:
    _, _, before, state, _ = trained
    first, last = flat(before), flat(state.model)
    moved = {name for name in first if (first[name] != last[name]).any()}
    assert moved == {name for name in first if "lora" in name or not name.startswith("['encoder']")}
    assert sum("lora_a" in name for name in moved) >= 6  # four matrices of attention, two of feed-forward


@pytest.mark.slow
def test_before_the_first_step_a_model_is_that_of_its_weights(trained: Any) -> None:
    program, reader, before, _, folder = trained
    plain, _ = program_of(folder)
    inputs = reader(TEXTS[:3])
    expected = plain.embed(plain.init(0).model, inputs)
    np.testing.assert_array_equal(program.embed(before, inputs), expected)


@pytest.mark.slow
def test_an_exported_folder_has_the_products_in_its_matrices(trained: Any, tmp_path: Path) -> None:
    program, reader, before, state, _ = trained
    sentence_transformers.write(EmbeddingModel(program, state.model, reader, (4, 16), "separate"), tmp_path, "x")
    again, _ = program_of(tmp_path)
    inputs = reader(TEXTS[:3])
    z = program.embed(state.model, inputs)
    np.testing.assert_allclose(again.embed(again.init(0).model, inputs), z, atol=1e-5)
    assert np.abs(z - program.embed(before, inputs)).max() > 1e-4
    assert huggingface.describe(tmp_path).architecture.hidden == 16


@pytest.mark.slow
def test_onnx_has_the_products_in_its_matrices(trained: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    program, reader, _, state, _ = trained
    _, done = onnx.write(EmbeddingModel(program, state.model, reader, (4, 16), "separate"), tmp_path, "x")
    assert "differ" in done


@pytest.mark.slow
def test_a_run_with_products_resumes_and_is_loaded(tmp_path: Path) -> None:
    MADE["qwen3"].write(tmp_path / "model")
    for part in ("train", "test"):
        rows = [{"anchor": f"the fox {part} {i}", "positive": f"a dog {i}"} for i in range(12)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "data=pairs", f"data.train={tmp_path / 'train.jsonl'}", f"data.test={tmp_path / 'test.jsonl'}", "width=16",
        "nesting_dims=[4,16]", "encoder=transformer", f"encoder.weights={tmp_path / 'model'}", "encoder.lora_rank=2",
        "arms=[mrl]", "seeds=1", "name=made", "loss.name=info_nce", "trainer.steps=2", "trainer.batch_size=4", "run=a",
        "trainer.evaluations=1", "evaluation.neighbours=false", f"results_dir={tmp_path}", "encoder.remat=true",
    ]  # fmt: skip
    assert train.main(words) == 0
    run = tmp_path / "made" / "a"
    z = mrl_jax.load(run).encode(TEXTS)
    (run / "evaluation.csv").unlink()
    assert train.main([*words, "resume=true"]) == 0
    np.testing.assert_array_equal(mrl_jax.load(run).encode(TEXTS), z)


def test_products_on_matrices_that_were_drawn_are_refused() -> None:
    encoders.check_width(TransformerConfig(), 16)
    with pytest.raises(UserError, match=r"^encoder.lora_rank=2 needs encoder.weights; without, 0$"):
        encoders.check_width(TransformerConfig(lora_rank=2), 16)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("static", r"unknown key encoder.lora_rank \(it is of encoder=transformer, vit\)"),
        ("transformer", "encoder.lora_rank=-1 is not allowed; at least 0"),
    ],
)
def test_an_encoder_without_such_matrices_and_a_negative_rank_are_refused(encoder: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        config.from_command_line(["data=newsgroups", f"encoder={encoder}", "encoder.lora_rank=-1"])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_of_frozen_weights_the_projection_and_the_heads_learn_and_nothing_else(tmp_path: Path) -> None:
    MADE["bert"].write(tmp_path / "model")
    program, reader = program_of(tmp_path / "model", frozen=True, projection=True)
    first = program.init(0)
    batch = {**reader(["the fox", "a dog"]), "label": np.array([0, 1], np.int32)}
    row = Row(np.ones((1, 2), np.float32), np.array(False))
    state, _ = jax.jit(program.step)(first, batch, row, jax.random.key(0))
    before, after = flat(first.model), flat(state.model)
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved == {name for name in before if "projection" in name or not name.startswith("['encoder']")}
    assert any("projection" in name for name in moved)


def test_frozen_weights_without_a_projection_are_refused(tmp_path: Path) -> None:
    MADE["bert"].write(tmp_path / "model")
    weights = str(tmp_path / "model")
    encoders.check_width(TransformerConfig(weights=weights, frozen=True, projection=True), 16)
    for settings, sentence in (
        ({"weights": weights}, "encoder.frozen=true needs encoder.projection=true: nothing else of the encoder would"),
        ({"weights": weights, "projection": True, "lora_rank": 2}, "is not allowed with encoder.lora_rank=2; it needs"),
        ({}, "^encoder.frozen=true needs encoder.weights; without, false$"),
    ):
        with pytest.raises(UserError, match=sentence):
            encoders.check_width(TransformerConfig(frozen=True, **settings), 16)
