"""`mrl_jax.mteb.Model` under `mteb.evaluate`, on a task that is made here."""

import json
from pathlib import Path

import model_folders
import numpy as np
import pytest

import mrl_jax
from mrl_jax.evaluate import ranking
from mrl_jax.system.errors import UserError
from mrl_jax.zero_shot import collections, models

WORDS = ("quick", "fox", "lazy", "dog", "fell", "stocks", "cafe", "resume", "query", "the")
PROMPTS = {"query": "query: ", "document": "the dog: "}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 16 dims with prompts."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    model_folders.make(path)
    model_folders.prompts(None, **PROMPTS)(path)
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents, 12 queries with graded judgments."""
    folder, rng = tmp_path_factory.mktemp("judged") / "small", np.random.default_rng(0)
    (folder / "qrels").mkdir(parents=True)
    texts = list(dict.fromkeys(" ".join(rng.choice(WORDS, rng.integers(2, 8))) for _ in range(90)))[:72]
    documents = [{"_id": f"d{i}", "title": WORDS[i % 10], "text": text} for i, text in enumerate(texts[:60])]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(texts[60:])]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"q{q}\td{d}\t{rng.integers(0, 4)}\n" for q in range(12) for d in rng.permutation(60)[:8]]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def test_what_stands_before_a_text_follows_its_use(folder: Path) -> None:
    model = mrl_jax.mteb.Model(str(folder), dim=8)
    batches = [{"text": ["quick fox", "dog"]}, {"text": ["lazy"]}]
    for role, prompt in {"query": "query: ", "document": "the dog: ", None: ""}.items():
        expected = model.model.encode([prompt + text for text in ("quick fox", "dog", "lazy")], 8, prompt=None)
        np.testing.assert_allclose(model.encode(batches, prompt_type=role, task_metadata=None), expected, atol=1e-6)


def test_a_dim_that_the_model_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="dim=17 is outside 1…16"):
        mrl_jax.mteb.Model(str(folder), dim=17)


def test_an_arm_of_what_is_no_run_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"arm=mrl chooses a model of a trained run, and .* is none"):
        mrl_jax.mteb.Model(str(folder), arm="mrl")


@pytest.mark.parametrize("dim", [4, 16])
def test_ndcg_is_ours(dim: int, folder: Path, judged: Path, tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    datasets, pytrec_eval = pytest.importorskip("datasets"), pytest.importorskip("pytrec_eval")
    collection = collections.read(str(judged))
    gains: dict[str, dict[str, int]] = {}
    for query, document, gain in collection.truth:
        gains.setdefault(collection.first.ids[query], {})[collection.second.ids[document]] = int(gain)

    class Small(mteb.abstasks.AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="Small", type="Retrieval", main_score="ndcg_at_10", eval_splits=["test"], eval_langs=["eng-Latn"],
            description="made here", dataset={"path": "none/small", "revision": "1"}, reference=None, prompt=None,
        )  # fmt: skip

        def load_data(self, *_: object, **__: object) -> None:
            def rows(side: collections.Side, **extra: str) -> object:
                pairs = zip(side.ids, side.texts, strict=True)
                return datasets.Dataset.from_list([{"id": name, "text": text, **extra} for name, text in pairs])

            queries, documents = rows(collection.first), rows(collection.second, title="")
            part = {"queries": queries, "corpus": documents, "relevant_docs": gains, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": part}}, True

    model = mrl_jax.mteb.Model(str(folder), dim=dim)
    result = mteb.evaluate(
        model, Small(), cache=None, co2_tracker=False, show_progress_bar=False, prediction_folder=tmp_path / "runs"
    )
    candidate = models.find(str(folder), cache_dir=str(tmp_path))
    queries, documents = (candidate.embed(collection, side) for side in (collection.first, collection.second))
    (ours,) = ranking.rank(queries, documents, collection.truth, (dim,))
    assert result.task_results[0].scores["test"][0]["ndcg_at_10"] == round(float(ours["ndcg@10"].mean()), 5)
    (file,) = (tmp_path / "runs").rglob("*.json")
    theirs = pytrec_eval.RelevanceEvaluator(gains, {"ndcg_cut.10"}).evaluate(
        json.loads(file.read_text())["default"]["test"]
    )
    values = [theirs[name]["ndcg_cut_10"] for name in collection.first.ids]
    np.testing.assert_allclose(ours["ndcg@10"], values, atol=1e-6)
