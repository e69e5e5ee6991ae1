"""Static embeddings: the mean of the rows of a table, however the table came to be; folders are read or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_folders
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from sklearn.decomposition import PCA
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import mrl_jax
from mrl_jax import encoders, export, train
from mrl_jax.encoders import static_tables
from mrl_jax.encoders.static import StaticConfig
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import sha256_of

WORDS = ["[PAD]", "[UNK]", "[CLS]", "orbit", "of", "a", "comet", "goal", "##s", "[unused1]"]
TEXTS = ["Orbit of a comet", "", "goals", "a a a goal of zzz", "[CLS] orbit", "comet " * 30]
RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(len(WORDS), 6)).astype(np.float32)
MAPPING, SHARES = RANDOM.integers(0, 4, len(WORDS)), RANDOM.random(len(WORDS)).astype(np.float32)


def write(folder: Path, **content: Any) -> None:
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def make(folder: Path, tensors: dict[str, np.ndarray], modules: tuple[str, ...] = ("StaticEmbedding",)) -> Path:
    """A folder as sentence-transformers writes it, with the tensors and modules that are given."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(tensors, folder / "model.safetensors")
    write(folder, modules=[{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in modules])
    return folder


def embed(width: int, **settings: Any) -> np.ndarray:
    """The vectors of `TEXTS` before training."""
    config = StaticConfig(**settings)
    reader = encoders.fit(config, "made", "text", TEXTS)
    arrays = reader(TEXTS)
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    encoders.check_width(config, width)
    module: Any = encoders.create(config, inputs=shapes, vocabulary=reader.vocabulary, width=width, rngs=nnx.Rngs(0))
    return np.asarray(module(arrays))


def mean_of_rows(folder: Path, table: np.ndarray, most: int = 512) -> np.ndarray:
    """What a StaticEmbedding computes, text by text in float64."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(text, add_special_tokens=False).ids[:most] for text in TEXTS]
    return np.array([np.float64(table)[row].mean(axis=0) if row else np.zeros(table.shape[1]) for row in ids])


KINDS: dict[str, tuple[dict[str, np.ndarray], np.ndarray]] = {  # the tensors of a file, and the table that they mean
    "sentence-transformers": ({"embedding.weight": TABLE}, TABLE),
    "float16": ({"embedding.weight": TABLE.astype(np.float16)}, TABLE.astype(np.float16)),
    "model2vec": ({"embeddings": TABLE}, TABLE),
    "model2vec, shared rows": ({"embeddings": TABLE[:4], "mapping": MAPPING}, TABLE[MAPPING]),
    "model2vec, weights": (
        {"embeddings": TABLE[:4], "mapping": MAPPING, "weights": SHARES},
        TABLE[MAPPING] * SHARES[:, None],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_the_mean_of_its_rows_and_a_narrower_one_its_prefix(kind: str, tmp_path: Path) -> None:
    tensors, table = KINDS[kind]
    folder = make(tmp_path, tensors, ("StaticEmbedding", "Normalize"))
    wanted = mean_of_rows(folder, table)
    np.testing.assert_allclose(embed(6, weights=str(folder)), wanted, atol=1e-6)
    np.testing.assert_allclose(embed(4, weights=str(folder)), wanted[:, :4], atol=1e-6)


def test_tokens_are_weighted_by_rank_where_asked_and_long_texts_are_cut(tmp_path: Path) -> None:
    folder = make(tmp_path, KINDS["float16"][0] | {"embedding.weight": TABLE})
    share = 1 / np.arange(2, 11)  # of the nine tokens that a text may have, the last is never used
    weights = np.append(1e-4 / (1e-4 + share / share.sum()), 0)
    wanted = mean_of_rows(folder, TABLE * weights[:, None], 3)
    np.testing.assert_allclose(embed(6, weights=str(folder), token_weights="zipf", max_length=3), wanted, rtol=1e-5)


def test_a_tokenizer_may_come_from_a_folder_and_its_vectors_be_random(tmp_path: Path) -> None:
    folder = make(tmp_path, {"embedding.weight": TABLE})
    assert embed(5, tokenizer=str(folder)).shape == (6, 5)
    reader = encoders.fit(StaticConfig(tokenizer=str(folder)), "made", "text", TEXTS)
    assert reader(TEXTS)["ids"][0].tolist()[:4] == [3, 4, 5, 6]
    with pytest.raises(UserError, match=r"^encoder.tokenizer=\./nowhere: there is no such folder"):
        embed(5, tokenizer="./nowhere")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another module": (
        lambda folder: make(folder, {"embedding.weight": TABLE}, ("StaticEmbedding", "Dense")),
        "StaticEmbedding, Dense is not supported; allowed: StaticEmbedding, then Normalize or not",
    ),
    "no table": (lambda folder: make(folder, {"weight": TABLE}), "holds no table of token vectors"),
    "a vector": (lambda folder: make(folder, {"embedding.weight": TABLE[0]}), "holds no table of token vectors"),
    "rows that are not there": (
        lambda folder: make(folder, {"embeddings": TABLE[:3], "mapping": MAPPING}),
        "holds no table of token vectors",
    ),
    "not finite": (
        lambda folder: make(folder, {"embedding.weight": TABLE * np.float32(np.inf)}),
        "holds numbers that are not finite",
    ),
    "fewer rows than tokens": (
        lambda folder: make(folder, {"embedding.weight": TABLE[:5]}),
        "has the token id 9, but the model has 5 token ids",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "no file": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_something_else_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    make(tmp_path, {"embedding.weight": TABLE})
    change, said = REFUSED[case]
    change(tmp_path)
    with pytest.raises(UserError) as error:
        embed(6, weights=str(tmp_path))
    assert said in str(error.value)


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    folder = str(make(tmp_path, {"embedding.weight": TABLE}))
    for settings, said in (
        ({"weights": folder, "tokenizer": folder}, "encoder.tokenizer=.* is not allowed with encoder.weights"),
        ({"token_weights": "zipf", "tokenizer": folder}, "encoder.token_weights=zipf needs encoder.weights"),
    ):
        with pytest.raises(UserError, match=said):
            embed(6, **settings)
    with pytest.raises(UserError, match=r"width=7 is not allowed; encoder.weights=.* have 6"):
        embed(7, weights=folder)
    with pytest.raises(UserError, match=r"module StaticEmbedding is not supported; .*; encoder=static reads it"):
        encoders.fit(TransformerConfig(weights=folder), "made", "text", TEXTS)


def test_a_transformer_is_distilled_to_the_principal_directions_of_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRL_JAX_CACHE", str(tmp_path / "cache"))
    model_folders.make(tmp_path / "model")
    weights = str(tmp_path / "model")
    tokenizer = static_tables.read_tokenizer(weights, 512)
    each = static_tables.distil(weights, tokenizer)
    whole = TransformerConfig(weights=weights)
    reader = encoders.fit(whole, "made", "text", [])
    shapes: dict[str, tuple[int, ...]] = {"ids": (3,), "mask": (3,)}
    module: Any = encoders.create(whole, inputs=shapes, vocabulary=reader.vocabulary, width=16, rngs=nnx.Rngs(0))
    tokenizer_with = reader.tokenizer
    assert tokenizer_with is not None
    first, last = tokenizer_with.encode("").ids
    ids = np.array([[first, i, last] for i in range(reader.vocabulary)], np.int32)
    np.testing.assert_allclose(each, module({"ids": ids, "mask": np.ones_like(ids)}), atol=1e-5)
    table = static_tables.vectors(weights, tokenizer, 5, zipf=False)
    oracle = PCA(5, svd_solver="full").fit_transform(np.float64(each))
    np.testing.assert_allclose(np.abs(table), np.abs(oracle), atol=1e-4)
    share = 1 / np.arange(2, len(each) + 2)
    weighted = table * (1e-4 / (1e-4 + share / share.sum()))[:, None]
    np.testing.assert_allclose(static_tables.vectors(weights, tokenizer, 5, None), weighted, rtol=1e-4)
    assert len(list((tmp_path / "cache" / "streamed").glob("distilled-*"))) == 1
    model_folders.pool(pooling_mode="cls")(tmp_path / "model")
    assert np.abs(static_tables.distil(weights, tokenizer) - each).max() > 0.01


def test_a_run_that_starts_from_a_folder_ends_in_one_with_the_same_vectors(tiny: list[str], tmp_path: Path) -> None:
    """Trained, exported, and read again: by the formula, by our own reader, and by the run alone."""
    start = make(tmp_path / "start", {"embedding.weight": np.tile(TABLE, 3)[:, :16]})
    words = ["encoder=static", f"encoder.weights={start}", "evaluation.refit=null", "evaluation.neighbours=false"]
    assert train.main([*tiny, *words, "arms=[mrl]", "trainer.steps=3", f"results_dir={tmp_path}", "run=a"]) == 0
    run = tmp_path / "tiny" / "a"
    assert json.loads((run / "dataset.json").read_text())["weights"] == sha256_of(start / "model.safetensors")
    for file in start.iterdir():
        file.unlink()
    model = mrl_jax.load(run)
    export.export(run, "sentence-transformers", tmp_path / "out")
    table = np.asarray(model.weights.params["encoder"]["embedding"])
    np.testing.assert_allclose(model.embed(TEXTS), mean_of_rows(tmp_path / "out", table), atol=1e-6)
    np.testing.assert_allclose(embed(16, weights=str(tmp_path / "out")), model.embed(TEXTS), atol=1e-6)
    assert "StaticEmbedding" in (tmp_path / "out" / "modules.json").read_text()


@pytest.mark.slow
def test_wordllama_has_its_published_quality(tmp_path: Path) -> None:
    """Spearman on the test of STS-B at 256, 64 and 16 dims, without training."""
    words = ["data=stsb", "encoder=static", "encoder.weights=wordllama", "loss.name=cosent", "name=w", "recipe=none"]
    words += ["width=256", "nesting_dims=[16,64,256]", "arms=[mrl,untuned]", "trainer.steps=1", "run=a"]
    assert train.main([*words, "evaluation.interpolated=false", f"results_dir={tmp_path}"]) == 0
    lines = (tmp_path / "w" / "a" / "evaluation.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if ",untuned,0," in line and ",test,spearman," in line]
    assert [(int(row[3]), round(float(row[6]), 3)) for row in sorted(rows, key=lambda row: int(row[3]))] == [
        (16, 0.658), (64, 0.73), (256, 0.759)
    ]  # fmt: skip


def test_prompts_are_those_of_the_folder_unless_others_are_given(tmp_path: Path) -> None:
    folder = make(tmp_path, {"embedding.weight": TABLE})
    write(folder, config_sentence_transformers={"prompts": {"q": "ask: "}, "default_prompt_name": "q"})
    config = StaticConfig(weights=str(folder))
    assert encoders.prompts(config, None).of() == "ask: "
    assert encoders.prompts(config, {}).of() == ""
    assert encoders.prompts(StaticConfig(), None).of() == ""
