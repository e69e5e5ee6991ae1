"""Exported folders: other libraries compute from them what the run computes; every mistake ends in a sentence."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import mrl_jax
from mrl_jax import encoders, export, train
from mrl_jax.config import Config, LossConfig, TrainerConfig
from mrl_jax.data import DataConfig
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.bag import BagConfig, heaviest_words
from mrl_jax.encoders.convnet import ConvNetConfig
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.encoders.transformer import TransformerConfig, complete, standalone
from mrl_jax.errors import UserError
from mrl_jax.export import embedder, onnx, sentence_transformers, stablehlo
from mrl_jax.export.embedder import signature
from mrl_jax.model import EmbeddingModel
from mrl_jax.runs import read_rows
from mrl_jax.tasks import train_step
from mrl_jax.text.tokenizers import Subwords

SENTENCES = ["Orbit3 common1 común", "", "hockey1 " * 30, "kernel2 garden5 orbit9 [PAD] common7", "zzz"]
TINY = TransformerConfig(layers=2, hidden=32, heads=4, intermediate=48, max_length=24, vocabulary=300)
TINY_OF_16 = dataclasses.replace(TINY, hidden=16)
FIRST_TOKEN = dataclasses.replace(TINY, layer_norm_eps=0.1, pooling="cls", projection=True, positions=40)

VARIANTS: dict[str, encoders.EncoderConfig] = {
    "transformer": dataclasses.replace(TINY, projection=True),
    "transformer, first token": FIRST_TOKEN,
    "transformer, bfloat16": dataclasses.replace(TINY, projection=True, dtype="bfloat16"),
    "bag": BagConfig(),
    "bag of few words": BagConfig(max_words=3, min_documents=1),
    "bag, projected": BagConfig(hidden=8),
    "bag, maximum and MLP": BagConfig(hidden=8, pooling="mean_max", mlp=12, max_words=5),
    "mlp": MLPConfig(hidden=(24, 12)),
    "mlp, linear": MLPConfig(hidden=(), dtype="bfloat16"),
    "mlp of images": MLPConfig(hidden=(24,)),
    "convnet": ConvNetConfig(channels=4, crop=6, mean=(0.3,), std=(0.3,)),
}


def made(encoder: encoders.EncoderConfig, texts: list[str], kind: str = "features") -> EmbeddingModel:
    """An encoder whose every parameter was drawn at random, so that a bias or a scale that is forgotten shows."""
    if "text" in encoders.ENCODERS[encoder.name].reads:
        kind = "text"
    raw: Any = {"text": texts, "image": np.zeros((1, 8, 9, 3)), "features": np.zeros((1, 10))}[kind]
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
    if not isinstance(encoder, BagConfig):
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


def test_stablehlo_computes_what_the_model_computes(model: EmbeddingModel, tmp_path: Path) -> None:
    stablehlo.write(model, tmp_path, "name")
    exported = jax.export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    for count in (1, 5):
        raw, given = feed(model, tmp_path, count)
        found = exported.call(*(x.astype(aval.dtype) for x, aval in zip(given, exported.in_avals, strict=True)))
        np.testing.assert_allclose(found, in_float32(model).embed(raw), rtol=1e-5, atol=1e-5)


def test_a_bag_takes_the_words_that_its_reader_takes(training: list[str]) -> None:
    """Also where a text has many more words than are read, words that are not known, or the same weight twice."""
    model = made(BagConfig(max_words=4, min_documents=1), [*training, "tie1 tie2", "tie1 tie2"])
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
    assert config["matryoshka_dims"] == [4, 8, 16]
    assert huggingface.describe(tmp_path) == huggingface.Description(
        dataclasses.replace(transformer_sizes(model), positions=40), "mean", 24
    )
    again = encoders.create(
        TransformerConfig(weights=str(tmp_path)), inputs={"ids": (24,), "mask": (24,)},
        vocabulary=model.reader.vocabulary, width=16, rngs=nnx.Rngs(1),
    )  # fmt: skip
    arrays = Subwords(huggingface.load_tokenizer(tmp_path))(SENTENCES)
    np.testing.assert_allclose(again(arrays), model.embed(SENTENCES), rtol=1e-5, atol=1e-5)


def transformer_sizes(model: EmbeddingModel) -> huggingface.Architecture:
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
    assert huggingface.read_pooling(tmp_path) == "cls"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["pad_token"] == "[PAD]"


@pytest.mark.parametrize("name", ["transformer", "transformer, first token", "transformer, bfloat16"])
def test_sentence_transformers_gives_our_vectors(name: str, training: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = made(VARIANTS[name], training)
    sentence_transformers.write(model, tmp_path, "x")
    texts = [text for text in SENTENCES if text]
    whole = library.SentenceTransformer(str(tmp_path), device="cpu")
    assert whole.max_seq_length == 24
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
    assert library.AutoConfig.from_pretrained(tmp_path).matryoshka_dims == [4, 8, 16]
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


def test_a_fixed_size_model_says_where_it_ends(words: Path, tmp_path: Path) -> None:
    export.export(words, "stablehlo", tmp_path / "made", arm="ff8")
    text = (tmp_path / "made" / "README.md").read_text()
    assert "# tiny: FF 8\n" in text
    assert "No loss was taken beyond 8 dims" in text
    assert "[:, :8]" in text
    assert json.loads((tmp_path / "made" / "config.json").read_text())["matryoshka_dims"] == [8]
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")] == ["dims", "8"]


def test_a_bfloat16_model_is_exported_in_float32_and_says_so(subwords: Path, tmp_path: Path) -> None:
    export.export(subwords, "sentence-transformers", tmp_path / "made")
    assert "exported in float32" in (tmp_path / "made" / "README.md").read_text()
    assert {a.dtype for a in load_file(tmp_path / "made" / "model.safetensors").values()} == {np.dtype(np.float32)}


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
            "or features); allowed here: onnx or stablehlo",
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
        ("sentence-transformers", "mlp", r"cannot hold encoder=mlp \(.*\); allowed here: onnx or stablehlo$"),
        ("onnx", "convnet", "--to=onnx cannot hold encoder=convnet .*; allowed here: stablehlo$"),
    ],
)
def test_encoders_are_refused_where_a_format_cannot_hold_them(to: str, encoder: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export.check_format(to, encoder)


def test_a_model_that_computes_something_else_is_not_written(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    right = encoders.ENCODERS["bag"]

    def wrong(g: Any, *rest: Any) -> str:
        z: str = g("Mul", right.onnx(g, *rest), 1.001)
        return z

    monkeypatch.setitem(encoders.ENCODERS, "bag", dataclasses.replace(right, onnx=wrong))
    with pytest.raises(UserError, match=r"the exported model differs from the run by 1\.0e-03"):
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
