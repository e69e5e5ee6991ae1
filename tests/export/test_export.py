"""Exported folders: other libraries compute from them what the run computes; every mistake ends in a sentence."""

import dataclasses
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import mrl_jax
from mrl_jax import config, encoders, export, train
from mrl_jax.config import Config, LossConfig, TrainerConfig
from mrl_jax.data import DataConfig, PairDataset, Pairs
from mrl_jax.data.prompts import Prompts
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.bag import BagConfig, heaviest_words
from mrl_jax.encoders.convnet import ConvNetConfig
from mrl_jax.encoders.families import Architecture
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.encoders.scaler import Scaler
from mrl_jax.encoders.static import StaticConfig
from mrl_jax.encoders.transformer_settings import TransformerConfig, complete, standalone
from mrl_jax.export import embedder, onnx, rotation, sentence_transformers, stablehlo
from mrl_jax.export.embedder import signature
from mrl_jax.export.folder import say_dims
from mrl_jax.export.model_card import card
from mrl_jax.export.rotation import rotate, training_embeddings
from mrl_jax.losses import heads
from mrl_jax.model import EmbeddingModel
from mrl_jax.runs import read_rows
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import train_step
from mrl_jax.text.tokenizers import Subwords

SENTENCES = ["Orbit3 common1 común", "", "hockey1 " * 30, "kernel2 garden5 orbit9 [PAD] common7", "zzz"]
TINY = TransformerConfig(layers=2, hidden=32, heads=4, intermediate=48, max_length=24, vocabulary=300)
TINY_OF_16 = dataclasses.replace(TINY, hidden=16)
FIRST_TOKEN = dataclasses.replace(TINY, layer_norm_eps=0.1, pooling="cls", projection=True, positions=40)

FEATURES = np.random.default_rng(1).normal(1e4, np.logspace(-1, 3, 10), (50, 10)).astype(np.float32)  # of awkward scale

VARIANTS: dict[str, encoders.EncoderConfig] = {
    "transformer": dataclasses.replace(TINY, projection=True),
    "transformer, first token": FIRST_TOKEN,
    "transformer, bfloat16": dataclasses.replace(TINY, projection=True, dtype="bfloat16"),
    "bag": BagConfig(),
    "bag of few words": BagConfig(max_words=3, min_documents=1),
    "bag, projected": BagConfig(hidden=8),
    "bag of characters": BagConfig(units="characters", ngrams=4, max_words=24),
    "bag, maximum and MLP": BagConfig(hidden=8, pooling="mean_max", mlp=12, max_words=5),
    "static": StaticConfig(vocabulary=300, max_length=24),
    "mlp": MLPConfig(hidden=(24, 12)),
    "mlp, linear": MLPConfig(hidden=(), dtype="bfloat16"),
    "mlp of features as they are": MLPConfig(hidden=(24,), standardise=False),
    "mlp of images": MLPConfig(hidden=(24,)),
    "convnet": ConvNetConfig(channels=4, crop=6, mean=(0.3,), std=(0.3,)),
}


def made(encoder: encoders.EncoderConfig, texts: list[str], kind: str = "features") -> EmbeddingModel:
    """An encoder whose every parameter was drawn at random, so that a bias or a scale that is forgotten shows."""
    if "text" in encoders.ENCODERS[encoder.name].reads:
        kind = "text"
    raw: Any = {"text": texts, "image": np.zeros((1, 8, 9, 3)), "features": FEATURES}[kind]
    reader = encoders.fit(encoder, "made", kind, raw)
    shapes = {name: array.shape[1:] for name, array in reader(raw).items()}
    config = Config(
        data=DataConfig("features"),
        encoder=encoder,
        name="made",
        width=16,
        nesting_dims=(4, 8, 16),
        arms=("mrl",),
        seeds=1,
        loss=LossConfig(),
        trainer=TrainerConfig(epochs=None, steps=2, batch_size=4),
    )
    dataset = {"inputs": shapes, "vocabulary": reader.vocabulary, "classes": ["a", "b"], "kind": kind}
    program = train_step(config, dataset)
    random = np.random.default_rng(0)
    shapes_of_all = jax.eval_shape(program.init, 0).model

    def drawn(path: Any, x: Any) -> np.ndarray:
        values = random.normal(0, 0.3, x.shape).astype(np.float32)
        return np.abs(values) + 0.1 if getattr(path[-1], "key", "") in ("scale", "var") else values

    weights = jax.tree_util.tree_map_with_path(drawn, shapes_of_all)
    return EmbeddingModel(program, weights, reader, (4, 8, 16), "separate")


def in_float32(model: EmbeddingModel) -> EmbeddingModel:
    """The model, with float32 operands: what an export is of."""
    encoder = model.program.encoder
    if hasattr(encoder, "dtype"):
        model = EmbeddingModel(
            dataclasses.replace(model.program, encoder=dataclasses.replace(encoder, dtype="float32")),
            model.weights, model.reader, model.dims, model.head,
        )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def training(texts: dict[str, Path]) -> list[str]:
    return [json.loads(line)["text"] for line in texts["train"].read_text().splitlines()]


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, training: list[str]) -> EmbeddingModel:
    kind = "image" if "images" in request.param or "convnet" in request.param else "features"
    return made(VARIANTS[request.param], training, kind)


@pytest.fixture(scope="module")
def words(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a bag of words: three arms, two seeds."""
    results = tmp_path_factory.mktemp("results")
    command = ["arms=[mrl,mrl_e,ff]", "seeds=2", "evaluation.refit=null", "trainer.steps=4"]
    assert train.main([*tiny, *command, f"results_dir={results}", "run=words"]) == 0
    return results / "tiny" / "words"


@pytest.fixture(scope="module")
def subwords(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small transformer, trained for two steps with bfloat16 operands."""
    results = tmp_path_factory.mktemp("results")
    sizes = ["layers=2", "hidden=32", "heads=4", "intermediate=48", "max_length=24", "vocabulary=300"]
    options = ["projection=true", "dtype=bfloat16", *sizes]
    command = ["encoder=transformer", *(f"encoder.{option}" for option in options), "trainer.steps=2"]
    less = ["evaluation.refit=null", "evaluation.neighbours=false", "trainer.evaluations=1"]
    assert train.main([*tiny, *command, *less, f"results_dir={results}", "run=subwords"]) == 0
    return results / "tiny" / "subwords"


def feed(model: EmbeddingModel, folder: Path, count: int) -> tuple[Any, list[np.ndarray]]:
    """Raw inputs, and the arrays that an exported model gets for them."""
    if model.reader.tokenizer is None:
        ((dtype, shape),) = signature(model).values()
        values = np.abs(np.random.default_rng(1).normal(size=(count, *shape[1:])))
        if isinstance(model.reader, Scaler):
            values = model.reader.undo(values)
        raw = values.astype(dtype) if dtype == "float32" else (100 * values).clip(0, 255).astype(dtype)
        return raw, [raw]
    encodings = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(SENTENCES[:count])
    return SENTENCES[:count], [np.array([e.ids for e in encodings]), np.array([e.attention_mask for e in encodings])]


# ---- what is computed ------------------------------------------------------------------------------------------------


def test_onnx_computes_what_the_model_computes(model: EmbeddingModel, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if isinstance(model.program.encoder, ConvNetConfig):
        pytest.skip("refused")
    onnx.write(model, tmp_path, "name")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [i.name for i in session.get_inputs()] == list(signature(model))
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("embedding", ["batch", 16])]
    for count in (1, 5):
        raw, given = feed(model, tmp_path, count)
        found = session.run(None, dict(zip(signature(model), given, strict=True)))[0]
        np.testing.assert_allclose(found, in_float32(model).embed(raw), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_stablehlo_computes_what_the_model_computes(model: EmbeddingModel, tmp_path: Path) -> None:
    stablehlo.write(model, tmp_path, "name")
    exported = jax.export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    for count in (1, 5):
        raw, given = feed(model, tmp_path, count)
        found = exported.call(*(x.astype(aval.dtype) for x, aval in zip(given, exported.in_avals, strict=True)))
        np.testing.assert_allclose(found, in_float32(model).embed(raw), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ngrams", [1, 3])
def test_a_bag_takes_the_words_that_its_reader_takes(training: list[str], ngrams: int) -> None:
    """Also where a text has many more words than are read, words that are not known, or the same weight twice."""
    model = made(BagConfig(max_words=4, min_documents=1, ngrams=ngrams), [*training, "tie1 tie2", "tie1 tie2"])
    texts = [" ".join(training[i : i + 5]) for i in range(40)] + ["tie2 tie1 orbit1 orbit2 orbit3", "unknown", ""]
    tokenizer = Tokenizer.from_str(model.reader.tokenizer.to_str())
    tokenizer.enable_padding(pad_id=0, pad_token="[UNK]")
    encodings = tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(e, name) for e in encodings]) for name in ("ids", "attention_mask"))
    found = heaviest_words(model.reader, {"input_ids": ids, "attention_mask": mask})
    wanted = model.reader(texts)
    for ids, weights, their_ids, their_weights in zip(
        wanted["ids"], wanted["weights"], np.asarray(found["ids"]), np.asarray(found["weights"]), strict=True
    ):
        unit = their_weights / max(np.linalg.norm(their_weights), 1e-12)
        theirs = {i: w for i, w in zip(their_ids, unit, strict=True) if w > 0}
        assert theirs == pytest.approx({i: w for i, w in zip(ids, weights, strict=True) if w > 0}, rel=1e-5)


@pytest.mark.slow
def test_onnx_and_stablehlo_stand_rows_without_a_token(training: list[str], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    for name in ("transformer", "transformer, first token", "bag, maximum and MLP"):
        model = made(VARIANTS[name], training)
        folder = tmp_path / name
        onnx.write(model, folder, "x")
        stablehlo.write(model, folder, "x")
        ids, mask = np.array([[3, 4, 5], [3, 4, 0], [0, 0, 0]]), np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        z = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        alone = session.run(None, {"input_ids": ids[1:2, :2], "attention_mask": mask[1:2, :2]})[0]
        np.testing.assert_allclose(z[1:2], alone, atol=1e-6)
        np.testing.assert_allclose(z[2:], model.embed([""]), atol=1e-6)
        exported = jax.export.deserialize((folder / "model.stablehlo").read_bytes())
        np.testing.assert_allclose(z, exported.call(ids.astype(np.int32), mask.astype(np.int32)), atol=1e-5)


def test_a_longer_text_than_there_are_positions_is_refused_by_stablehlo(training: list[str], tmp_path: Path) -> None:
    stablehlo.write(made(TINY_OF_16, training), tmp_path, "x")
    exported = jax.export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    exported.call(np.zeros((1, 24), np.int32), np.ones((1, 24), np.int32))
    with pytest.raises(ValueError, match="shapes"):
        exported.call(np.zeros((1, 25), np.int32), np.ones((1, 25), np.int32))


def test_a_folder_for_sentence_transformers_is_read_by_our_own_loader(training: list[str], tmp_path: Path) -> None:
    model = made(dataclasses.replace(TINY_OF_16, positions=40), training)
    sentence_transformers.write(model, tmp_path, "x")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["matryoshka_dims"] == config["matryoshka_dimensions"] == [4, 8, 16]
    assert (config["is_matryoshka"], config["normalized"]) == (True, False)  # as servers read it
    assert huggingface.describe(tmp_path) == huggingface.Description(
        dataclasses.replace(transformer_sizes(model), positions=40), "mean", 24
    )
    again = encoders.create(
        TransformerConfig(weights=str(tmp_path)), inputs={"ids": (24,), "mask": (24,)},
        vocabulary=model.reader.vocabulary, width=16, rngs=nnx.Rngs(1),
    )  # fmt: skip
    arrays = Subwords(huggingface.load_tokenizer(tmp_path))(SENTENCES)
    np.testing.assert_allclose(again(arrays), model.embed(SENTENCES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("transformer", marks=pytest.mark.slow), "bag", "mlp"])
def test_eight_bits_stay_near_the_model(name: str, training: list[str], tmp_path: Path) -> None:
    library, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    variant = next(key for key in VARIANTS if key.startswith(name))
    model = made(VARIANTS[variant], training, "features" if name == "mlp" else "text")
    _, outcome = export.FORMATS["onnx-int8"].write(model, tmp_path, "x")
    assert outcome.startswith("largest difference to the run")
    raw, arrays = feed(model, tmp_path, 8)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    z = session.run(None, dict(zip(signature(model), arrays, strict=True)))[0]
    exact = model.embed(raw)
    cosines = np.sum(z * exact, axis=1) / np.maximum(np.linalg.norm(z, axis=1) * np.linalg.norm(exact, axis=1), 1e-12)
    assert (cosines[np.linalg.norm(exact, axis=1) > 0] > 0.98).all()
    stored = {one.data_type for one in library.load(tmp_path / "model.onnx").graph.initializer}
    assert stored & {library.TensorProto.INT8, library.TensorProto.UINT8}
    assert not logging.root.manager.disable


def test_a_model_without_prefixes_is_none_that_a_server_may_cut(training: list[str]) -> None:
    nested = made(TINY_OF_16, training)
    alone = EmbeddingModel(nested.program, nested.weights, nested.reader, (16,), "separate")
    assert say_dims(alone) == {"matryoshka_dims": [16], "normalized": False}
    z = nested.embed(SENTENCES)
    for dim in (4, 16):  # whoever has whole vectors cuts them as `encode` does
        np.testing.assert_allclose(mrl_jax.truncate(z, dim), nested.encode(SENTENCES, dim), atol=1e-6)
        np.testing.assert_allclose(
            mrl_jax.truncate(nested.encode(SENTENCES), dim), nested.encode(SENTENCES, dim), atol=1e-6
        )


def transformer_sizes(model: EmbeddingModel) -> Architecture:
    return complete(*standalone(model.program.encoder, model.program.vocabulary))[1]


def test_a_projection_becomes_a_dense_module(training: list[str], tmp_path: Path) -> None:
    model = made(FIRST_TOKEN, training)
    sentence_transformers.write(model, tmp_path, "x")
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [(m["path"], m["type"].rsplit(".")[-1]) for m in modules] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
    ]
    dense = load_file(tmp_path / "2_Dense" / "model.safetensors")
    kernel = model.weights.params["encoder"]["projection"]["kernel"]
    np.testing.assert_array_equal(dense["linear.weight"], kernel.T)
    assert dense["linear.bias"].shape == (16,)
    assert json.loads((tmp_path / "2_Dense" / "config.json").read_text())["activation_function"].endswith(".Identity")
    assert huggingface.describe(tmp_path).pooling == "cls"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["pad_token"] == "[PAD]"


@pytest.mark.parametrize("name", ["transformer", "transformer, first token", "transformer, bfloat16", "static"])
def test_sentence_transformers_gives_our_vectors(name: str, training: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = made(VARIANTS[name], training)
    sentence_transformers.write(model, tmp_path, "x")
    texts = [text for text in SENTENCES if text]
    whole = library.SentenceTransformer(str(tmp_path), device="cpu")
    assert whole.max_seq_length == (np.inf if name == "static" else 24)  # tokenizer.json cuts
    np.testing.assert_allclose(whole.encode(texts), in_float32(model).embed(texts), rtol=1e-5, atol=1e-5)
    for dim in (4, 16):
        cut = library.SentenceTransformer(str(tmp_path), truncate_dim=dim, device="cpu")
        z = cut.encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(z, in_float32(model).encode(texts, dim), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)


def test_transformers_reads_the_config_and_the_tokenizer(training: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    model = made(TINY_OF_16, training)
    sentence_transformers.write(model, tmp_path, "x")
    read = library.AutoConfig.from_pretrained(tmp_path)
    assert (read.is_matryoshka, read.matryoshka_dimensions) == (True, [4, 8, 16])
    tokenizer = library.AutoTokenizer.from_pretrained(tmp_path)
    found = tokenizer([*SENTENCES, "orbit1 " * 99], padding=True, truncation=True, return_tensors="np")
    wanted = model.reader([*SENTENCES, "orbit1 " * 99])
    np.testing.assert_array_equal(found["input_ids"], wanted["ids"])
    np.testing.assert_array_equal(found["attention_mask"], wanted["mask"])


# ---- the folder, as the command writes it ----------------------------------------------------------------------------


def usage(folder: Path) -> np.ndarray:
    """Run the card's example in a fresh process beside the folder; it must not need mrl_jax."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    script = f"{code[1]}\nimport sys\nassert 'mrl_jax' not in sys.modules\nnp.save('z.npy', z)\n"
    if "import numpy" not in script:
        script = "import numpy as np\n" + script
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    z: np.ndarray = np.load(folder.parent / "z.npy")
    return z


@pytest.mark.parametrize("to", ["onnx", "stablehlo", "sentence-transformers"])
@pytest.mark.parametrize("name", ["words", "subwords"])
@pytest.mark.slow
def test_the_example_on_the_card_gives_our_vectors(
    to: str, name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    needed = {"onnx": "onnxruntime", "stablehlo": "jax", "sentence-transformers": "sentence_transformers"}
    pytest.importorskip(needed[to])
    if (to, name) == ("sentence-transformers", "words"):
        pytest.skip("refused")
    run: Path = request.getfixturevalue(name)
    assert export.main([str(run), "--to", to, str(tmp_path / "made")]) == 0
    assert str(tmp_path / "made") in capsys.readouterr().out
    assert json.loads((tmp_path / "made" / "config.json").read_text())["matryoshka_dims"] == [4, 8, 16]
    z = usage(tmp_path / "made")
    wanted = in_float32(mrl_jax.load(run)).encode(["a goal in overtime", "how do I unmount a drive"], 8)
    np.testing.assert_allclose(z, wanted, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "z.npy"]


@pytest.mark.parametrize("to", ["onnx", "stablehlo"])
@pytest.mark.parametrize("name", ["mlp", "mlp of images"])
def test_the_example_for_arrays_runs(to: str, name: str, training: list[str], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = made(VARIANTS[name], training, "image" if "image" in name else "features")
    code, _ = export.FORMATS[to].write(model, tmp_path / "made", "made")
    (tmp_path / "made" / "README.md").write_text(f"```python\n{code}```")
    shape = (2, 8, 9, 3) if "image" in name else (2, 10)
    zeros = np.zeros(shape, np.uint8 if "image" in name else np.float32)
    np.testing.assert_allclose(usage(tmp_path / "made"), in_float32(model).encode(zeros, 8), atol=1e-5)


def test_the_card_tells_what_the_model_is(words: Path, tmp_path: Path) -> None:
    export.export(words, "stablehlo", tmp_path / "made", arm="mrl_e", seed=1)
    text = (tmp_path / "made" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "jax"
    assert "matryoshka" in front["tags"]
    assert "# tiny: MRL-E\n" in text
    rows = {(r.seed, r.dim): r.value for r in read_rows(words / "evaluation.csv")
            if (r.arm, r.split, r.metric) == ("mrl_e", "test", "linear_top1")}  # fmt: skip
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert table[0][:2] == ["dims", "linear_top1"]
    assert [int(line[0].split()[0]) for line in table[1:]] == sorted({dim for _, dim in rows})
    for line in table[1:]:
        dim = int(line[0].split()[0])
        assert line[0].endswith("†") == (dim not in (4, 8, 16))
        if (1, dim) in rows:
            assert line[1] == f"{rows[1, dim]:.4f} ({(rows[0, dim] + rows[1, dim]) / 2:.4f})"
    assert "Seed 1, in brackets the mean over 2 seeds." in text
    assert "(216 training examples, 4 classes)" in text or "training examples, 4 classes)" in text
    assert str(words.parent.parent) not in text.split("## Training")[1].split("data.train")[0]
    assert "results_dir: results\n" in text


def test_the_card_has_the_command_without_the_places_of_its_machine(words: Path, tmp_path: Path) -> None:
    path = words / "environment.json"
    kept = path.read_text()
    options = ["+experiment=smoke", "arms=[mrl]", "results_dir=/home/me", "run=a", "resume=true"]
    path.write_text(
        json.dumps(json.loads(kept) | {"command": ["train.py", *options], "git_commit": "abc", "git_changes": True})
    )
    try:
        export.export(words, "stablehlo", tmp_path / "made")
    finally:
        path.write_text(kept)
    text = (tmp_path / "made" / "README.md").read_text()
    assert "python -m mrl_jax.train +experiment=smoke 'arms=[mrl]'\n" in text
    assert "Commit abc with uncommitted changes." in text
    assert "/home/me" not in text


@pytest.mark.parametrize(("weights", "hub"), [("wordllama", "dleemiller/word-llama-l2-supercat"), (None, None)])
def test_the_card_names_the_published_model_that_a_table_is_of(
    weights: str | None, hub: str | None, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mrl_jax.load(words)
    begun = config.from_yaml(words / "config.yaml")
    monkeypatch.setattr(
        config, "from_yaml", lambda _: dataclasses.replace(begun, encoder=StaticConfig(weights=weights))
    )
    text = card(words, model, None, 0, library="x", tags=(), note="", usage="")
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == hub
    assert ("It started from" in text) == bool(hub)


def test_a_fixed_size_model_says_where_it_ends(words: Path, tmp_path: Path) -> None:
    export.export(words, "stablehlo", tmp_path / "made", arm="ff8")
    text = (tmp_path / "made" / "README.md").read_text()
    assert "# tiny: FF 8\n" in text
    assert "No loss was taken beyond 8 dims" in text
    assert "[:, :8]" in text
    assert json.loads((tmp_path / "made" / "config.json").read_text())["matryoshka_dimensions"] == [8]
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")] == ["dims", "8"]


@pytest.mark.slow
def test_a_bfloat16_model_is_exported_in_float32_and_says_so(subwords: Path, tmp_path: Path) -> None:
    export.export(subwords, "sentence-transformers", tmp_path / "made")
    assert "exported in float32" in (tmp_path / "made" / "README.md").read_text()
    assert {a.dtype for a in load_file(tmp_path / "made" / "model.safetensors").values()} == {np.dtype(np.float32)}


def test_a_model_trained_with_bfloat16_encodes_in_float32_unless_asked_otherwise(subwords: Path) -> None:
    model, rounded = mrl_jax.load(subwords), mrl_jax.load(subwords, dtype="bfloat16")
    whole = dataclasses.replace(model.program.encoder, dtype="float32")
    exact = EmbeddingModel(
        dataclasses.replace(model.program, encoder=whole), model.weights, model.reader, model.dims, model.head
    ).encode(SENTENCES)
    np.testing.assert_array_equal(model.encode(SENTENCES), exact)
    difference = np.abs(rounded.encode(SENTENCES) - exact).max()
    assert 1e-6 < difference < 0.05
    assert rounded.fingerprint == model.fingerprint
    with pytest.raises(UserError, match=r"^dtype=float16 is unknown"):
        mrl_jax.load(subwords, dtype="float16")


def test_a_run_without_a_test_split_has_no_table(words: Path, tmp_path: Path) -> None:
    rows = words / "evaluation.csv"
    kept = rows.read_text()
    rows.unlink()
    try:
        export.export(words, "stablehlo", tmp_path / "made")
    finally:
        rows.write_text(kept)
    assert "The run has no evaluation on a test split." in (tmp_path / "made" / "README.md").read_text()


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["RUN", "--to", "onx", "OUT"],
            "--to=onx is unknown (did you mean onnx?); allowed: sentence-",
        ),
        (["RUN", "--to", "stablehlo", "FULL"], "FULL exists and is not an empty folder; nothing is overwritten"),
        (["RUN", "--to", "stablehlo", "FULL/file"], "FULL/file exists and is not an empty folder"),
        (["RUN", "--to", "stablehlo", "FULL/file/below"], "FULL/file/below"),
        (["RUN", "--to", "stablehlo", "OUT", "--arm", "mrl_f"], "arm=mrl_f is unknown (did you mean mrl_e?)"),
        (["RUN", "--to", "stablehlo", "OUT", "--seed", "2"], "seed=2 is not in "),
        (["OUT", "--to", "stablehlo", "OUT"], "OUT is not a run: there is no config.yaml in it"),
        (
            ["RUN", "--to", "sentence-transformers", "OUT"],
            "--to=sentence-transformers cannot hold encoder=bag (it has no module for sublinear tf-idf weights, images "
            "or features); allowed here: onnx, onnx-int8, stablehlo",
        ),
    ],
)
def test_a_mistake_ends_in_a_sentence_and_leaves_nothing(
    arguments: list[str], message: str, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    places = {"RUN": str(words), "OUT": str(tmp_path / "out"), "FULL": str(tmp_path / "full")}

    def placed(word: str) -> str:
        return re.sub("RUN|OUT|FULL", lambda m: places[m[0]], word)

    assert export.main([placed(word) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert placed(message) in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_a_command_without_a_format_is_explained(words: Path, capsys: pytest.CaptureFixture) -> None:
    assert export.main([str(words), "somewhere"]) == 2
    assert "--to" in capsys.readouterr().err
    assert export.main(["--help"]) == 0


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(package: str, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"--to=onnx needs the package onnx.*: pip install 'mrl_jax\[onnx\]'"):
        export.export(words, "onnx", tmp_path / "made")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "encoder", "message"),
    [
        ("sentence-transformers", "convnet", r"cannot hold encoder=convnet \(.*\); allowed here: stablehlo$"),
        ("sentence-transformers", "mlp", r"cannot hold encoder=mlp \(.*\); allowed here: onnx, onnx-int8, stablehlo$"),
        ("onnx", "convnet", "--to=onnx cannot hold encoder=convnet .*; allowed here: stablehlo$"),
    ],
)
def test_encoders_are_refused_where_a_format_cannot_hold_them(to: str, encoder: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export.check_format(to, encoders.ENCODERS[encoder].config())


@pytest.mark.parametrize("to", ["onnx", "onnx-int8"])
def test_a_model_that_computes_something_else_is_not_written(
    to: str, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    right = encoders.ENCODERS["bag"]

    def wrong(g: Any, *rest: Any) -> str:
        z: str = g("Mul", right.onnx(g, *rest), 1.001)
        return z

    monkeypatch.setitem(encoders.ENCODERS, "bag", dataclasses.replace(right, onnx=wrong))
    with pytest.raises(UserError, match=r"the exported model differs from the run by 1\.0e-03"):
        export.export(words, to, tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_a_model_that_onnx_cannot_hold_is_refused(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx, "MAX_BYTES", 999)
    with pytest.raises(UserError, match=r"take [\d,]+ bytes, .* at most 999; use --to=sentence-transformers$"):
        export.export(words, "onnx", tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing_and_the_next_one_works(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = [str(words), "--to", "stablehlo", str(tmp_path / "made")]
    with monkeypatch.context() as patch:
        patch.setattr(export, "card", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert export.main(command) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / ".made.partial").mkdir()  # of a process that was killed
    (tmp_path / ".made.partial" / "junk").touch()
    (tmp_path / "made").mkdir()  # an empty folder is as good as none
    assert export.main(command) == 0
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "README.md",
        "config.json",
        "model.stablehlo",
        "tokenizer.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("environment.json", "[]", "environment.json cannot be read"),
        ("tokenizer.json", "{", "tokenizer.json cannot be read"),
        ("dataset.json", "{}", "dataset.json is damaged"),
        ("config.yaml", "x", "config.yaml cannot be read"),
    ],
)
def test_a_damaged_run_is_refused(file: str, content: str, said: str, words: Path, tmp_path: Path) -> None:
    """By its sums; and a run of before there were any by what is in the files."""
    kept = {name: (words / name).read_text() for name in (file, "SHA256SUMS")}
    (words / file).write_text(content)
    try:
        with pytest.raises(UserError, match="SHA256SUMS" if file in ("tokenizer.json", "dataset.json") else said):
            export.export(words, "stablehlo", tmp_path / "made")
        (words / "SHA256SUMS").unlink()
        with pytest.raises(UserError, match=said):
            export.export(words, "stablehlo", tmp_path / "made")
    finally:
        for name, text in kept.items():
            (words / name).write_text(text)
    assert not list(tmp_path.iterdir())


def test_a_machine_without_a_cpu_backend_is_told(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(backend: str) -> list[Any]:
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(embedder.jax, "local_devices", none)
    with pytest.raises(UserError, match="JAX_PLATFORMS leaves out; add cpu"):
        embedder.full_precision(mrl_jax.load(words))


# --- rotated models -----------------------------------------------------------------------------------------------


ROTATED: dict[str, encoders.EncoderConfig] = VARIANTS | {"transformer without a projection": TINY_OF_16}


def whole(model: EmbeddingModel, raw: Any) -> np.ndarray:
    """Of the full width and any length, float64."""
    (z,) = model._stream(raw, model.program.width, normalised=False)
    return np.float64(z)


@pytest.mark.parametrize("name", ROTATED)
def test_rotating_keeps_inner_products_and_makes_prefixes_principal_directions(name: str, training: list[str]) -> None:
    images = np.random.default_rng(2).integers(0, 255, (20, 8, 9, 3), np.uint8)
    kind = "image" if "images" in name or "convnet" in name else "features"
    model = in_float32(made(ROTATED[name], training, kind))
    raw = images if kind == "image" else FEATURES if model.reader.tokenizer is None else [*SENTENCES, *training[:20]]
    z = whole(model, raw)
    turned = rotate(model, z.astype(np.float32))
    got = whole(turned, raw)
    scale = np.abs(z @ z.T).max()
    np.testing.assert_allclose(got @ got.T / scale, z @ z.T / scale, atol=1e-5)
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    unit = np.divide(z, lengths, out=np.zeros_like(z), where=lengths > 0)
    energies = np.square(np.divide(got, lengths, out=np.zeros_like(z), where=lengths > 0)).sum(0)
    np.testing.assert_allclose(energies, np.linalg.svd(unit, compute_uv=False)[:16] ** 2, rtol=1e-4, atol=1e-4)
    assert turned.fingerprint != model.fingerprint  # an index of the one is none of the other


@pytest.mark.parametrize("kind", heads.KINDS)
def test_the_classifier_is_rotated_with_the_embedding(kind: str, words: Path) -> None:
    model = mrl_jax.load(words, "mrl" if kind == "separate" else "mrl_e")
    turned = rotate(model, training_embeddings(words, model))
    texts = [*SENTENCES, "common1 garden5"]
    width = model.program.width
    logits = [
        whole(one, texts) @ np.float64(kernel) + bias
        for one in (model, turned)
        for kernel, bias in [one.classifiers()[width]]
    ]
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert model.predict(texts)[0] == turned.predict(texts)[0]
    for m, (kernel, _) in turned.classifiers().items():
        np.testing.assert_array_equal(kernel, turned.classifiers()[width][0][:m])


def test_an_exported_model_keeps_the_rotation(words: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    assert export.main([str(words), "--to", "onnx", str(tmp_path / "out"), "--rotate"]) == 0
    model = mrl_jax.load(words)
    turned = rotate(model, training_embeddings(words, model))
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    coded = turned.reader.tokenizer.encode_batch(SENTENCES[:1])
    arrays = {"input_ids": [coded[0].ids], "attention_mask": [coded[0].attention_mask]}
    (got,) = session.run(None, {name: np.array(value, np.int64) for name, value in arrays.items()})
    np.testing.assert_allclose(got, whole(turned, SENTENCES[:1]), rtol=1e-3, atol=1e-4)
    assert "It was rotated after training" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("scores", "prompt"), [(None, "document"), (np.ones(2, np.float32), None)])
def test_directions_come_from_texts_with_the_prompt_that_they_were_trained_with(
    scores: np.ndarray | None, prompt: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = Pairs(["a", "b", "c"], np.array([[0, 1], [0, 2]], np.int32), scores)
    model = SimpleNamespace(prompts=Prompts({"document": "d: "}), encode=lambda texts, prompt: (texts, prompt))
    monkeypatch.setattr(rotation, "configuration", SimpleNamespace(from_yaml=lambda path: SimpleNamespace(data=None)))
    monkeypatch.setattr(rotation.runs, "find", Path)
    monkeypatch.setattr(rotation.data, "load", lambda config: PairDataset("pairs", "text", pairs, pairs, pairs))
    texts, given = training_embeddings(tmp_path, model)  # type: ignore[arg-type]
    assert (texts, given) == (["b", "c"] if scores is None else ["a", "b", "c"], prompt)


def test_what_cannot_be_rotated_is_refused(training: list[str], words: Path) -> None:
    largest = made(BagConfig(hidden=8, pooling="mean_max"), training)
    with pytest.raises(UserError, match="--rotate is not allowed with this encoder=bag: its embedding is pooled"):
        rotate(largest, np.eye(16, dtype=np.float32))
    narrow = mrl_jax.load(words, f"ff{min(mrl_jax.load(words).dims)}")
    with pytest.raises(UserError, match="--rotate needs a model that is trained at its full width"):
        rotate(narrow, np.eye(narrow.program.width, dtype=np.float32))
    with pytest.raises(ValueError, match=r"embeddings must be \[n, 16\], n at least 1; got shape \(0, 16\)"):
        rotate(largest, np.zeros((0, 16)))
