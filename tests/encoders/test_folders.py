"""Model folders: every setting that changes a vector is used as sentence-transformers uses it, or refused by name."""

import contextlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from model_folders import PROMPTED, REFUSED, TEXTS, VARIANTS, both, config, make, pool, prompts, tokens, width
from model_folders import put as set_keys

import mrl_jax
from mrl_jax import encoders, export, train
from mrl_jax.data.prompts import ROLES, put
from mrl_jax.encoders import families, folder_settings, huggingface
from mrl_jax.encoders.folder_settings import KEYS
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import description

ORACLE = Path(__file__).parents[1] / "data" / "folder_oracle.npz"
LENGTH = 40  # every batch is padded to as many tokens, so that few programs are compiled


@cache
def program(graph: Any) -> Any:
    return jax.jit(lambda params, inputs: nnx.merge(graph, params)(inputs))


def embed(folder: Path, prompts: dict[str, str] | None = None, use: str | None = None) -> np.ndarray:
    """The vectors of `TEXTS` by our encoder with the weights of a folder, before any training."""
    encoder = TransformerConfig(weights=str(folder))
    reader, named = encoders.fit(encoder, "made", "text", TEXTS), encoders.prompts(encoder, prompts)
    named.check_room(reader.tokenizer)
    texts = put(named.of(use), TEXTS)
    inputs = {name: np.pad(x, ((0, 0), (0, LENGTH - x.shape[1]))) for name, x in reader(texts).items()}
    shapes = {name: x.shape[1:] for name, x in inputs.items()}
    module = encoders.create(
        encoder, inputs=shapes, vocabulary=reader.vocabulary, width=width(folder), rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(module)
    return np.asarray(program(graph)(params, inputs))


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_gives_the_vectors_that_sentence_transformers_gave(name: str, folder: Path) -> None:
    VARIANTS[name](folder)
    with np.load(ORACLE, allow_pickle=False) as oracle:
        expected = oracle[name]
    z = embed(folder)
    np.testing.assert_allclose(unit(z) if "Normalize" in name else z, expected, atol=1e-5)


@pytest.mark.parametrize("name", PROMPTED)
def test_queries_and_documents_have_the_vectors_that_sentence_transformers_gave(name: str, folder: Path) -> None:
    VARIANTS[name](folder)
    with np.load(ORACLE, allow_pickle=False) as oracle:
        for use in ("query", "document"):
            np.testing.assert_allclose(embed(folder, use=use), oracle[f"{name} ({use})"], atol=1e-5)


def test_the_stored_vectors_are_of_these_folders() -> None:
    with np.load(ORACLE, allow_pickle=False) as oracle:
        assert set(oracle.files) == {*VARIANTS, *(f"{name} ({use})" for name in PROMPTED for use in ROLES)}
        base = oracle["as saved"]
        changed = {name for name in VARIANTS if oracle[name].shape != base.shape or (oracle[name] != base).any()}
    assert len(changed) > 40


@pytest.mark.parametrize("name", VARIANTS)
def test_sentence_transformers_gives_the_same_now_and_after_it_saved_the_folder(name: str, folder: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    VARIANTS[name](folder)
    model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.save(str(folder.with_name("again")), create_model_card=False)
    for place in (folder, folder.with_name("again")):
        z = embed(place)
        np.testing.assert_allclose(unit(z) if "Normalize" in name else z, model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_give_other_vectors_is_refused_in_a_sentence(name: str, folder: Path) -> None:
    change, words = REFUSED[name]
    change(folder)
    with pytest.raises(UserError) as error:
        embed(folder)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, "x", [None], {"1": {"content": "the"}}, 10**30, "\ud800"], ids=ascii)
def test_a_damaged_setting_is_a_sentence_or_harmless(value: Any, folder: Path) -> None:
    VARIANTS["Dense"](folder)
    files = {name: name for name in KEYS if name.endswith(".json")}
    files |= {"1_Pooling/config.json": "Pooling", "2_Dense/config.json": "Dense", "tokenizer.json": "tokenizer.json"}
    for name, kind in files.items():
        kept = (folder / name).read_text()
        known = [*KEYS[kind].used.split(), *KEYS[kind].only] if kind in KEYS else []
        for key in {**json.loads(kept), **dict.fromkeys(known)}:
            set_keys(name, **{key: value})(folder)
            with contextlib.suppress(UserError):
                width(folder)
                huggingface.load_tokenizer(folder)
            (folder / name).write_text(kept)


def test_a_pooling_that_is_named_and_missing_is_said_in_a_sentence(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UserError, match=r"1_Pooling/config.json is missing; modules.json names it"):
        huggingface.describe(folder)


def test_the_table_has_each_key_once_and_all_that_the_reader_uses() -> None:
    for name, keys in KEYS.items():
        listed = [*keys.used.split(), *keys.only, *keys.harmless.split()]
        assert len(listed) == len(set(listed)), name
    for family in families.FAMILIES.values():
        assert {*families.config_keys(family).values()} <= {*KEYS["config.json"].used.split()}


def test_keys_that_nobody_knows_are_named_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_settings.warn.cache_clear()
    both(config(swish=1, other=None), tokens(twist=2), pool(turn=3))(folder)
    embed(folder)
    embed(folder)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": what ")[1].split(" means")[0] for line in said] == ["swish", "turn", "twist"]


@pytest.mark.parametrize(
    ("default", "texts", "expected"),
    [
        (None, {"query": "", "document": ""}, {}),
        (None, {"query": "q: ", "document": None}, {"query": "q: "}),
        ("query", {"query": "q: ", "document": ""}, {"default": "q: ", "document": ""}),
        ("x", {"query": "t: ", "document": "d: ", "x": "t: "}, {"default": "t: ", "document": "d: ", "x": "t: "}),
        ("default", {"default": "t: ", "query": "t: ", "document": "t: "}, {"default": "t: "}),
        (None, {"default": "t: ", "passage": "p: "}, {"passage": "p: "}),
        (None, {"document": "", "passage": "p: "}, {"document": "", "passage": "p: "}),
    ],
)  # fmt: skip
def test_prompts_of_a_folder_are_read_without_those_that_say_nothing(
    default: str | None, texts: dict[str, Any], expected: dict[str, str], folder: Path
) -> None:
    set_keys("config_sentence_transformers.json", prompts=texts, default_prompt_name=default)(folder)
    assert huggingface.describe(folder).prompts == expected


def test_prompts_on_the_command_line_take_the_place_of_those_of_a_folder(folder: Path) -> None:
    plain = embed(folder)
    prompts("q", q="query: ")(folder)
    default = embed(folder)
    np.testing.assert_array_equal(embed(folder, prompts={}), plain)
    assert np.abs(default - plain).max() > 0.01
    prompts(None)(folder)
    np.testing.assert_array_equal(embed(folder, prompts={"default": "query: "}), default)


def test_pooling_without_modules_is_read_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_settings.warn.cache_clear()
    pool(pooling_mode="cls")(folder)
    first = embed(folder)
    (folder / "modules.json").unlink()
    np.testing.assert_array_equal(embed(folder), first)
    assert "modules.json is missing" in capsys.readouterr().err


def test_a_width_other_than_that_of_the_last_map_is_refused(folder: Path) -> None:
    VARIANTS["Dense"](folder)
    with pytest.raises(UserError, match=r"width=5 is not allowed; encoder.weights=.* have 6"):
        encoders.create(
            TransformerConfig(weights=str(folder)), inputs={"ids": (9,), "mask": (9,)}, vocabulary=9, width=5,
            rngs=nnx.Rngs(0),
        )  # fmt: skip


def test_a_run_of_another_width_is_refused_before_it_begins(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VARIANTS["Dense"](folder)
    assert train.main(command(folder, tmp_path, "[2,5]")) == 2
    assert "width=5 is not allowed" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


# ---- runs that start from a folder -----------------------------------------------------------------------------------

PAIRS = [("the quick Fox", "a dog"), ("stocks fell", "the fox fell"), ("Café", "a résumé"), ("x", "dog")]


def command(folder: Path, place: Path, dims: str = "[4,16]") -> list[str]:
    """A run that hardly moves the weights of a folder."""
    for part in ("train", "test"):
        lines = [
            json.dumps({"anchor": f"{anchor} {part} {i}", "positive": positive})
            for anchor, positive in PAIRS
            for i in range(3)
        ]
        (place / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [
        "data=pairs", *(f"data.{part}={place / part}.jsonl" for part in ("train", "test")), f"nesting_dims={dims}",
        f"width={json.loads(dims)[-1]}", "encoder=transformer", f"encoder.weights={folder}", "arms=[mrl]", "seeds=1",
        "loss.name=info_nce", "optimizer.learning_rate=1e-12", "trainer.steps=1", "trainer.batch_size=2", "name=made",
        f"results_dir={place / 'results'}", "run=a", "trainer.evaluations=1", "evaluation.neighbours=false",
    ]  # fmt: skip


def run_from(folder: Path, place: Path, *options: str, dims: str = "[4,16]") -> Path:
    assert train.main([*command(folder, place, dims), *options]) == 0
    return place / "results" / "made" / "a"


WRITTEN = {
    "prompt, length and lower case": both(
        prompts("q", q="query: ", query="the fox: ", document=""),
        tokens(model_max_length=9, do_lower_case=True, truncation_side="left"),
    ),
    "a last map": both(VARIANTS["Dense"], prompts("q", q="query: ")),
}


@pytest.fixture(
    scope="module", params=["prompt, length and lower case", pytest.param("a last map", marks=pytest.mark.slow)]
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the folder that it started from."""
    place = tmp_path_factory.mktemp("run")
    make(place / "model")
    WRITTEN[request.param](place / "model")
    return run_from(place / "model", place, dims="[2,6]" if "map" in request.param else "[4,16]"), place / "model"


@pytest.mark.slow
def test_a_run_embeds_as_the_folder_that_it_started_from(trained: tuple[Path, Path]) -> None:
    run, folder = trained
    np.testing.assert_allclose(mrl_jax.load(run).encode(TEXTS), unit(embed(folder)), atol=1e-5)


@pytest.mark.slow
def test_an_exported_folder_reads_back_with_prompt_length_and_case(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, folder = trained
    export.export(run, "sentence-transformers", tmp_path / "out")
    found, origin = huggingface.describe(tmp_path / "out"), huggingface.describe(folder)
    assert (found.prompts, found.max_length, found.projected) == (origin.prompts, origin.max_length, origin.projected)
    np.testing.assert_allclose(embed(tmp_path / "out"), embed(folder), atol=1e-5)


def test_sentence_transformers_reads_the_prompt_of_an_exported_folder(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    run, _ = trained
    export.export(run, "sentence-transformers", tmp_path / "out")
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    for encode, use in ((model.encode, None), (model.encode_query, "query"), (model.encode_document, "document")):
        z = encode(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(z, mrl_jax.load(run).encode(TEXTS, prompt=use), atol=1e-5)


@pytest.mark.parametrize("to", ["onnx", "stablehlo"])
def test_other_exports_tell_the_prompt(trained: tuple[Path, Path], to: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run, folder = trained
    prompts = huggingface.describe(folder).prompts
    export.export(run, to, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["prompts"] == prompts
    assert json.dumps(f"{prompts['default']}a goal in overtime") in (tmp_path / "out" / "README.md").read_text()


def test_a_run_of_before_there_was_a_setting_is_of_the_same_data() -> None:
    """It resumes, as long as its own settings are what they were."""
    now = {"encoder": {"name": "transformer", "max_length": 9, "new": ""}}
    assert description.changed_keys({"encoder": {"name": "transformer", "max_length": 9}}, now) == []
    assert description.changed_keys({"encoder": {"name": "transformer", "max_length": 8}}, now) == ["encoder"]
