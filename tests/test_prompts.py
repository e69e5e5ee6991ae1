"""A run with prompts: they are used wherever it is, kept with it, and every mistake is one sentence."""

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from helpers import random_pair, write_table

import mrl_jax
from mrl_jax import config, data, embed, runs, search, train
from mrl_jax.data.prompts import Prompts
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from mrl_jax.tasks import description

PROMPTS = {"query": "Query 1: ", "document": "passage: "}
WORDS = "data.prompts={query: 'Query 1: ', document: 'passage: '}"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of pairs in which a few queries are documents, too."""
    folder, rng = tmp_path_factory.mktemp("prompts"), np.random.default_rng(0)
    for part, count in (("train", 120), ("test", 40)):
        rows = [random_pair(rng) for _ in range(count)]
        rows += [{"anchor": row["anchor"], "positive": rows[i + 1]["anchor"]} for i, row in enumerate(rows[:5])]
        write_table(folder / f"{part}.jsonl", rows)
    return [
        "data=pairs", f"data.train={folder / 'train.jsonl'}", f"data.test={folder / 'test.jsonl'}", "name=made",
        "loss.name=info_nce", "encoder=bag", "encoder.min_documents=1", "width=16", "nesting_dims=[4,16]", "arms=[mrl]",
        "trainer.steps=10", "trainer.batch_size=16", "trainer.evaluations=1", "evaluation.neighbours=false",
        "optimizer.learning_rate=0.02",
        f"results_dir={folder / 'results'}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(command: list[str]) -> Path:
    assert train.main([*command, WORDS, "run=prompted"]) == 0
    return Path(command[-1].partition("=")[2]) / "made" / "prompted"


@pytest.fixture(scope="module")
def model(run: Path) -> EmbeddingModel:
    return mrl_jax.load(run)


def test_encode_puts_the_prompt_of_the_name_before_each_text(model: EmbeddingModel) -> None:
    assert dict(model.prompts.texts) == PROMPTS
    texts = ["what is bado bemi", "odab"]
    for name, prompt in PROMPTS.items():
        expected = model.encode([prompt + text for text in texts])
        np.testing.assert_array_equal(model.encode(texts, prompt=name), expected)
        assert np.abs(expected - model.encode(texts)).max() > 0.01  # their words are in the vocabulary


def test_an_unknown_name_is_a_sentence_with_those_that_are_known(
    model: EmbeddingModel, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"prompt=querry is unknown \(did you mean query\?\); allowed: query, document"):
        model.encode_stream(["x"], prompt="querry")


def test_the_test_ranks_prompted_documents_for_prompted_queries(run: Path, model: EmbeddingModel) -> None:
    rows = [json.loads(line) for line in Path(config.from_yaml(run / "config.yaml").data.test).read_text().splitlines()]
    queries, documents = (list(dict.fromkeys(row[column] for row in rows)) for column in ("anchor", "positive"))
    z, d = model.encode(queries, prompt="query"), model.encode(documents, prompt="document")
    found = []
    for query, scores in zip(queries, z.astype(float) @ d.astype(float).T, strict=True):
        relevant = {row["positive"] for row in rows if row["anchor"] == query}
        order = [documents[i] for i in np.argsort(-scores, kind="stable") if documents[i] != query or query in relevant]
        found.append(1 / (1 + min(order.index(text) for text in relevant)))
    with (run / "evaluation.csv").open() as file:
        (mrr,) = [
            row for row in csv.DictReader(file) if (row["dim"], row["split"], row["metric"]) == ("16", "test", "mrr@10")
        ]
    assert float(mrr["value"]) == pytest.approx(np.mean([one if one >= 0.1 else 0 for one in found]), abs=1e-6)


def test_search_puts_them_before_documents_and_queries(
    run: Path, model: EmbeddingModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["odab imeb", "ulic akof", "bado", "akof"]
    write_table(tmp_path / "corpus.jsonl", [{"_id": str(i), "text": text} for i, text in enumerate(texts)])
    index = str(tmp_path / "index")
    assert search.main(["build", str(run), str(tmp_path / "corpus.jsonl"), "--index", index]) == 0
    capsys.readouterr()
    assert search.main(["query", index, "what is bado foka", "--k", "4"]) == 0
    scores = np.sort(model.encode(["what is bado foka"], prompt="query")[0] @ model.encode(texts, prompt="document").T)
    found = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(found, scores[::-1], atol=1e-4)


def test_embed_takes_the_name_of_a_prompt(
    run: Path, model: EmbeddingModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "in.jsonl", [{"text": "bado foka"}])
    words = [str(run), str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.npy")]
    assert embed.main([*words, "--prompt", "document"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.encode(["bado foka"], prompt="document"), atol=1e-6)
    assert embed.main([*words, "--prompt", "passage"]) == 2
    assert "prompt=passage is unknown; allowed: query, document" in capsys.readouterr().err


def test_an_index_of_other_prompts_is_of_another_model(model: EmbeddingModel) -> None:
    def fingerprint(texts: dict[str, str]) -> str:
        prompts = Prompts(texts)
        return EmbeddingModel(model.program, model.weights, model.reader, model.dims, "", prompts=prompts).fingerprint

    others = [{}, {"default": "passage: "}, {"query": "Query 1: "}, {**PROMPTS, "document": ""}]
    assert len({model.fingerprint, *map(fingerprint, others)}) == 5
    digest = hashlib.sha256(b"passage: ")  # as before there were several
    for leaf in jax.tree.leaves(model.weights):
        digest.update(np.ascontiguousarray(leaf))
    assert fingerprint({"default": "passage: "}) == digest.hexdigest()


def test_a_run_is_resumed_with_its_prompts_and_no_others(
    command: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [*command, "run=prompted", "resume=true"]
    assert train.main([*again, WORDS]) == 0
    assert train.main(again) == 2
    assert "data.prompts={'query': 'Query 1: ', 'document': 'passage: '} (now None)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("data.prompts=query", "data.prompts=query is not allowed; a mapping such as {name: text}"),
        ("data.prompts={query: 1}", "data.prompts.query=1 is not allowed; text"),
        ("data.prompts={query: '\ud800'}", "is not allowed; names with texts that UTF-8 can encode"),
        ("encoder.prompt=x", "unknown key encoder.prompt; it is data.prompts={default: x} now"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: str, sentence: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*command, words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_prompt_that_leaves_no_room_is_refused_before_training(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    long = f"data.prompts={{query: '{'bado ' * 9}', document: ''}}"
    sizes = ["encoder=transformer", "encoder.vocabulary=300", "encoder.max_length=8"]
    assert train.main([*(word for word in command if not word.startswith("encoder")), *sizes, long]) == 2
    error = capsys.readouterr().err
    assert 'data.prompts: query="bado bado' in error
    assert "leaves no room for a text, which is cut at encoder.max_length=8 tokens" in error


def test_prompts_that_classes_do_not_use_are_said(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for prompts, said in (("{query: 'q: ', default: 'x '}", True), ("{default: 'x '}", False)):
        settings = config.from_command_line([*tiny, f"data.prompts={prompts}"])
        dataset = description.put_prompts(settings, data.load(settings.data))
        assert all(text.startswith("x ") for text in dataset.train.raw)
        assert ("no text of the data is a query or a document" in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    ("prompts", "typos"),
    [
        ({"qurey": "q: ", "documents": "d: "}, ["qurey", "documents"]),
        ({"query": "q: ", "passage": "p: ", "queries": "x", "documents": "d: ", "bitext": "b: "}, []),
        ({"query": "q: ", "defualt": "d: "}, ["defualt"]),
    ],
)
def test_a_name_that_looks_like_a_typo_of_a_use_is_said(
    prompts: dict[str, str], typos: list[str], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config.from_command_line(tiny)
    settings = replace(settings, data=replace(settings.data, prompts=prompts))
    description.put_prompts(settings, data.load(settings.data))
    said = capsys.readouterr().err
    assert said.count("(did you mean") == len(typos)
    assert all(
        f"data.prompts.{name} stands before no text unless it is asked for by name (did" in said for name in typos
    )


@pytest.mark.parametrize("alone", [True, False])
def test_an_earlier_run_of_weights_with_prompts_goes_on_with_what_stood_before_its_texts(
    alone: bool, run: Path, tmp_path: Path
) -> None:
    """With `encoder.prompt: null`, that was the default prompt alone, and before there was the key nothing."""
    plain = yaml.safe_load((run / "config.yaml").read_text())
    del plain["data"]["prompts"]
    described = json.loads((run / "dataset.json").read_text())
    del described["prompts"]
    if not alone:
        plain["encoder"]["prompt"], described["encoder"]["prompt"] = None, "x: "
    begun = {} if alone else {"default": "x: "}
    stored = tmp_path / "config.yaml"
    stored.write_text(yaml.safe_dump(plain))
    assert config.from_yaml(stored).data.prompts is None  # nothing was trained yet
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert config.from_yaml(stored).data.prompts == begun
    for given, differs in ((None, False), (begun, False), (PROMPTS, True)):
        now = config.from_yaml(stored)
        now = replace(now, data=replace(now.data, prompts=given))
        now = config.as_begun(now, config.missing_keys(stored))
        assert bool(config.differences(config.from_yaml(stored), now)) == differs
    (tmp_path / "dataset.json").write_text("[1")
    assert config.from_yaml(stored).data.prompts is None


@pytest.mark.parametrize(("stored", "now"), [(None, None), ("", {}), ("q: ", {"default": "q: "})])
def test_the_prompt_of_an_earlier_run_is_the_default_of_all_texts(
    stored: str | None, now: dict[str, str] | None, run: Path, tmp_path: Path
) -> None:
    kept = config.from_yaml(run / "config.yaml")
    text = config.to_yaml(kept)
    before, _, after = text.partition("  prompts:\n    query: 'Query 1: '\n    document: 'passage: '\n")
    assert after
    (tmp_path / "config.yaml").write_text(
        (before + after).replace("encoder:\n", f"encoder:\n  prompt: {json.dumps(stored)}\n")
    )
    assert config.from_yaml(tmp_path / "config.yaml").data.prompts == now
    described = json.loads((run / "dataset.json").read_text())
    del described["prompts"]
    described["encoder"]["prompt"] = stored or ""
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert runs.read_dataset(tmp_path)["prompts"] == (now or {})
    assert "prompt" not in runs.read_dataset(tmp_path)["encoder"]
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "prompts": {"query": 1}}))
    with pytest.raises(UserError, match="is damaged: prompts="):
        runs.read_dataset(tmp_path)
