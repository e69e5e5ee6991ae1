"""`python -m mrl_jax.evaluate`: models that were never trained here, on collections without training pairs."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import model_folders
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from mrl_jax import report, zero_shot
from mrl_jax.evaluate import bm25, compress, neighbours, quantised, ranking
from mrl_jax.model import vectors
from mrl_jax.model.pretrained import pretrained
from mrl_jax.report import validate
from mrl_jax.report.gather import gather
from mrl_jax.system.errors import UserError
from mrl_jax.zero_shot import collections, models, scores

pytrec_eval = pytest.importorskip("pytrec_eval")

TITLES = ("fox", "dog", "stocks", "cafe", "resume", "lazy quick")
TEXTS = (
    "the quick fox",
    "a lazy dog fell",
    "stocks fell the dog",
    "cafe resume x",
    "fox dog x query",
    "lazy stocks",
    "",
)
QUERIES = ("quick fox", "lazy dog", "stocks fell", "resume of a cafe", "query")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_collection(folder: Path, seed: int = 0, qrels: str | None = None) -> Path:
    """42 documents, five queries, of which one is a document too, graded judgments and two slips."""
    rng = np.random.default_rng(seed)
    titled = [(title, text) for title in TITLES for text in TEXTS]
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": a, "text": b} for i, (a, b) in enumerate(titled)])
    ids = ["d0", *(f"q{i}" for i in range(1, len(QUERIES)))]
    write_lines(folder / "queries.jsonl", [{"_id": i, "text": text} for i, text in zip(ids, QUERIES, strict=True)])
    lines = ["query-id\tcorpus-id\tscore", "q1\tunknown\t1", "nobody\td1\t1"]
    for query in ids:
        judged = rng.permutation(len(titled))[: rng.integers(3, 12)]
        lines += [f"{query}\td{d}\t{rng.integers(0, 4)}" for d in judged] + [f"{query}\td{judged[0] - 1 or 1}\t2"]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n" if qrels is None else qrels)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 16 dims."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    model_folders.make(path)
    return path


@pytest.fixture(scope="module")
def evaluated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model on two collections; beside the results the collections `small` and `other`, and the cache."""
    place = tmp_path_factory.mktemp("evaluated")
    small, other = write_collection(place / "small"), write_collection(place / "other", 1)
    assert run(place, str(folder), "--on", str(small), str(other), "--dims", "4,8") == 0
    return place


def run(place: Path, *words: str) -> int:
    return zero_shot.main([*words, "--out", str(place / "out"), "--cache-dir", str(place / "cache")])


def rows_of(path: Path) -> list[dict[str, str]]:
    with (path / "evaluation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_arm_is_scored_at_every_dim_and_at_full_width(evaluated: Path) -> None:
    rows = rows_of(evaluated / "out" / "small" / "tiny")
    found = {(row["arm"], int(row["dim"])) for row in rows if row["metric"] == "ndcg@10"}
    arms = ("untuned", "untuned_pca", "random_projection")
    assert found == {(arm, dim) for arm in arms for dim in (4, 8, 16)} | {("bm25", 16)}
    stored = {row["metric"] for row in rows if row["arm"] == "untuned"}
    assert {"int8_ndcg@10", "bit_ndcg@10", "recall@100"} <= stored


def test_scores_are_those_of_trec_eval_on_prefixes_by_brute_force(evaluated: Path, folder: Path) -> None:
    collection = collections.read(str(evaluated / "small"))
    model = models.find(str(folder), cache_dir=str(evaluated / "cache"))
    queries, documents = (model.embed(collection, side) for side in (collection.first, collection.second))
    judgments: dict[str, dict[str, int]] = {}
    for query, document, gain in collection.truth:
        judgments.setdefault(collection.first.ids[query], {})[collection.second.ids[document]] = int(gain)
    evaluator = pytrec_eval.RelevanceEvaluator(judgments, {"ndcg_cut.10"})
    written = {int(r["dim"]): float(r["value"]) for r in rows_of(evaluated / "out" / "small" / "tiny")
               if (r["arm"], r["metric"]) == ("untuned", "ndcg@10")}  # fmt: skip
    for dim, outcomes in zip(
        (4, 8, 16), ranking.rank(queries, documents, collection.truth, (4, 8, 16), collection.own), strict=True
    ):
        x, y = (z[:, :dim].astype(np.float64) for z in (queries, documents))
        cosines = (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T
        order = np.argsort(-cosines.round(6), axis=1, kind="stable")  # equal texts, with equal cosines, by row
        results = {
            query: {collection.second.ids[d]: float(-place) for place, d in enumerate(order[q])
                    if collection.second.ids[d] != query}
            for q, query in enumerate(collection.first.ids)
        }  # fmt: skip
        theirs = evaluator.evaluate(results)
        expected = np.array([theirs[query]["ndcg_cut_10"] for query in collection.first.ids])
        np.testing.assert_allclose(outcomes["ndcg@10"], expected, atol=1e-9)
        assert written[dim] == pytest.approx(expected.mean(), abs=1e-6)


MEASURES = {
    "ndcg@10": "ndcg_cut_10",
    "map@10": "map_cut_10",
    "recall@1": "recall_1",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
}


def trec_eval(collection: collections.Collection, best: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of a ranking [Q, k] by trec_eval."""
    judgments: dict[str, dict[str, int]] = {f"{query}": {} for query in range(len(best))}
    for query, document, gain in collection.truth:
        judgments[str(query)][str(document)] = int(gain)
    run = {f"{q}": {f"{d}": float(-place) for place, d in enumerate(row) if d >= 0} for q, row in enumerate(best)}
    names = {"ndcg_cut.10", "map_cut.10", "recall.1,10,100"}
    theirs = pytrec_eval.RelevanceEvaluator(judgments, names).evaluate(run)
    return {ours: np.array([theirs[f"{q}"][name] for q in range(len(best))]) for ours, name in MEASURES.items()}


def test_every_ranking_has_the_scores_of_trec_eval(evaluated: Path, folder: Path) -> None:
    """Of each way of storing and each arm, by the judgments of the collection and graded, negative ones."""
    collection = collections.read(str(evaluated / "small"))
    model = models.find(str(folder), cache_dir=str(evaluated / "cache"))
    queries, documents = (model.embed(collection, side) for side in (collection.first, collection.second))
    written = {(r["arm"], r["metric"], int(r["dim"])): float(r["value"])
               for r in rows_of(evaluated / "out" / "small" / "tiny")}  # fmt: skip
    arms = {"untuned": (queries, documents)}
    for name, compression in {"untuned_pca": "pca", "random_projection": "random_projection"}.items():
        fitted = compress.fit(compression, documents, 0)
        arms[name] = fitted.apply(queries), fitted.apply(documents)
    ways = {("untuned", f"{kind}_"): find for kind, find in quantised.KINDS.items()}
    ways |= {(arm, ""): neighbours.neighbours for arm in arms}
    for (arm, prefix), find in ways.items():
        for dim, best in zip((4, 8, 16), scores.rank(*arms[arm], collection, (4, 8, 16), find), strict=True):
            ours = collection.outcomes(best)
            for metric, theirs in trec_eval(collection, best).items():
                np.testing.assert_allclose(ours[metric], theirs, atol=1e-9)
                assert written[arm, prefix + metric, dim] == pytest.approx(theirs.mean(), abs=1e-6)


def test_other_judgments_than_those_of_the_test_are_named_by_their_file(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "marco")
    test = collections.read(str(folder))
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    dev = collections.read(str(folder / "qrels" / "dev.tsv"))
    assert (test.name, dev.name) == ("marco", "marco-dev")
    np.testing.assert_array_equal(dev.truth, test.truth)
    assert dev.first.texts == test.first.texts
    with pytest.raises(UserError, match=rf"it has others: --on {folder}/qrels/dev.tsv; --unjudged"):
        collections.read(str(folder))


def test_ids_that_are_numbers_are_those_that_are_text_and_judgments_below_0_are_of_no_use(tmp_path: Path) -> None:
    texts = [f"{word} fox {i}" for i, word in enumerate(["quick", "lazy", "dog", "fell", "stocks", "cafe"])]
    folders = []
    for name, kind in (("numbers", int), ("text", str)):
        folders.append(tmp_path / name)
        write_lines(folders[-1] / "corpus.jsonl", [{"_id": kind(i), "text": text} for i, text in enumerate(texts)])
        write_lines(folders[-1] / "queries.jsonl", [{"_id": str(10 + i), "text": text} for i, text in enumerate(texts)])
        (folders[-1] / "qrels").mkdir()
        (folders[-1] / "qrels" / "test.tsv").write_text("10\t0\t3\n10\t1\t-2\n10\t2\t1\n11\t1\t-1\n12\t4\t2.0\n")
    first, second = (collections.read(str(folder)) for folder in folders)
    np.testing.assert_array_equal(first.truth, second.truth)
    np.testing.assert_array_equal(first.truth, [[0, 0, 3], [0, 1, 0], [0, 2, 1], [1, 4, 2]])
    best = np.array([[1, 2, 0, 3], [0, 4, 1, 2]])
    for metric, theirs in trec_eval(first, best).items():
        np.testing.assert_allclose(first.outcomes(best)[metric], theirs, atol=1e-9)
    z = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.savez(tmp_path / "z.npz", queries=z, queries_ids=np.arange(10, 16), documents=z[::-1],
             documents_ids=np.arange(6)[::-1])  # fmt: skip
    vectors = models.find(str(tmp_path / "z.npz"))
    for collection in (first, second):
        np.testing.assert_array_equal(vectors.embed(collection, collection.first), z[[0, 2]])
        np.testing.assert_array_equal(vectors.embed(collection, collection.second), z)


def test_models_of_two_widths_are_scored_at_the_dims_that_they_have(
    evaluated: Path, folder: Path, tmp_path: Path
) -> None:
    z = np.random.default_rng(0).normal(size=(42, 6))
    np.savez(tmp_path / "narrow.npz", queries=z[:5], documents=z)
    on = str(evaluated / "small")
    words = (str(folder), str(tmp_path / "narrow.npz"), "--on", on, "--dims", "4,8")
    assert zero_shot.main([*words, "--out", str(tmp_path), "--cache-dir", str(evaluated / "cache")]) == 0
    for name, dims in (("tiny", {4, 8, 16}), ("narrow", {4, 6})):
        assert {int(row["dim"]) for row in rows_of(tmp_path / "small" / name) if row["arm"] == "untuned"} == dims


def test_bm25_is_computed_once_per_collection(
    evaluated: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked: list[int] = []
    rank = bm25.rank
    monkeypatch.setattr(bm25, "rank", lambda *words: (ranked.append(1), rank(*words))[1])
    z = np.random.default_rng(0).normal(size=(42, 4))
    np.savez(tmp_path / "z.npz", queries=z[:5], documents=z)
    words = (str(tmp_path / "z.npz"), str(tmp_path / "z.npz"), "--on", str(evaluated / "small"), "--dims", "2")
    assert zero_shot.main([*words, "--out", str(tmp_path)]) == 0
    assert len(ranked) == 1


def test_a_query_ranks_the_document_of_its_own_id_only_where_that_is_asked_for(evaluated: Path) -> None:
    on = str(evaluated / "small")
    np.testing.assert_array_equal(collections.read(on).own, [[0, 0]])
    assert collections.read(on, keep_own=True).own is None


def test_embeddings_are_made_once_and_continue_after_a_kill(
    evaluated: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = evaluated / "cache" / "embeddings"
    whole = {path.name: path.read_bytes() for path in cache.glob("*.npy")}
    assert len(whole) == 2  # the texts of both are the same
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 16)
    collection = collections.read(str(evaluated / "small"))
    model = pretrained(str(folder))
    place = str(evaluated / "second")
    first = vectors.embed(model, collection.second.texts, "document", "", place)
    (path,) = (evaluated / "second" / "embeddings").glob("*.npy")
    content = path.read_bytes()
    path.rename(path.with_name(path.name + ".partial"))
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content[: len(content) - 600])  # within a row, after the first block
    partial.with_name(partial.name + ".json").write_text(json.dumps({"texts": len(collection.second.texts)}))
    asked: list[int] = []
    stream = model.encode_stream
    monkeypatch.setattr(model, "encode_stream", lambda texts, **k: (asked.append(len(texts)), stream(texts, **k))[1])
    again = vectors.embed(model, collection.second.texts, "document", "", place)
    np.testing.assert_array_equal(again, first)
    assert asked == [10]
    assert path.read_bytes() == content
    vectors.embed(model, collection.second.texts, "document", "", place)
    assert asked == [10]


def test_reports_read_the_folders(evaluated: Path) -> None:
    gathered = gather([evaluated / "out" / "small"])
    assert {series.arm for series in gathered.series} == {"untuned", "untuned_pca", "random_projection", "bm25"}
    series = gathered.find("untuned")
    assert series is not None
    values, outcomes = gathered.values(series, "ndcg@10"), gathered.outcomes(series, "ndcg@10")
    assert [*values] == [4, 8, 16]
    for dim, value in values.items():
        assert outcomes[dim].mean() == pytest.approx(value[0], abs=1e-6)


@pytest.mark.slow
def test_a_report_is_written_of_a_collection(evaluated: Path) -> None:
    report.report([evaluated / "out" / "small"], evaluated / "report")
    assert "BM25" in (evaluated / "report" / "report.md").read_text(encoding="utf-8")


def test_a_second_evaluation_overwrites_nothing(evaluated: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = (evaluated / "out" / "small" / "tiny" / "evaluation.csv").read_bytes()
    assert run(evaluated, str(folder), "--on", str(evaluated / "small"), "--dims", "2,4") == 0
    assert (evaluated / "out" / "small" / "tiny" / "evaluation.csv").read_bytes() == before
    assert {int(row["dim"]) for row in rows_of(evaluated / "out" / "small" / "tiny-2")} == {2, 4, 16}
    said = capsys.readouterr()
    assert "95%: " in said.out
    assert "not in corpus.jsonl, left out" in said.err
    assert "do not rank their own" in said.err


def test_vectors_of_another_program_have_the_scores_of_the_model(evaluated: Path, folder: Path) -> None:
    collection = collections.read(str(evaluated / "small"))
    model = models.find(str(folder), cache_dir=str(evaluated / "cache"))
    order = np.random.default_rng(0).permutation(len(collection.second.ids))
    np.savez(
        evaluated / "vectors.npz",
        queries=model.embed(collection, collection.first),
        documents=3 * model.embed(collection, collection.second)[order],
        documents_ids=np.array(collection.second.ids)[order],
    )
    assert run(evaluated, str(evaluated / "vectors.npz"), "--on", str(evaluated / "small"), "--dims", "4,8") == 0

    def values(name: str) -> dict:
        rows = rows_of(evaluated / "out" / "small" / name)
        exact = ("untuned", "untuned_pca", "bm25")
        return {(r["arm"], r["dim"]): r["value"] for r in rows if r["metric"] == "ndcg@10" and r["arm"] in exact[::2]}

    assert values("vectors") == values("tiny")


def test_labelled_texts_are_classified_by_neighbours_and_by_a_linear_classifier(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 64), ("test", 32)):
        labels = rng.integers(0, 2, count)
        words = [("fox", "dog")[label] + " the quick lazy".rsplit(" ", rng.integers(0, 3))[0] for label in labels]
        rows = [{"text": text, "label": str(label)} for text, label in zip(words, labels, strict=True)]
        write_lines(tmp_path / "animals" / f"{part}.jsonl", rows)
    assert run(tmp_path, str(folder), "--on", str(tmp_path / "animals"), "--dims", "8") == 0
    rows = rows_of(tmp_path / "out" / "animals" / "tiny")
    values = {(r["arm"], r["metric"], int(r["dim"])): float(r["value"]) for r in rows}
    collection = collections.read(str(tmp_path / "animals"))
    model = models.find(str(folder), cache_dir=str(tmp_path / "cache"))
    z, known = (model.embed(collection, side).astype(np.float64) for side in (collection.first, collection.second))
    for dim in (8, 16):
        cosines = z[:, :dim] @ (known[:, :dim] / np.linalg.norm(known[:, :dim], axis=1)[:, None]).T
        labels, others = np.split(collection.truth, [32])
        by_hand = (others[cosines.round(6).argmax(axis=1)] == labels).mean()
        assert values["untuned", "knn_top1", dim] == pytest.approx(by_hand, abs=1e-6)
        assert values["untuned", "refit_top1", dim] > 0.8
    assert {"int8_knn_top1", "bit_knn_top1"} <= {metric for _, metric, _ in values}
    assert gather([tmp_path / "out" / "animals"]).find("untuned_pca")


@pytest.mark.slow
def test_two_arms_of_a_run_are_two_models_of_a_report(trained: Path, tmp_path: Path) -> None:
    on = write_collection(tmp_path / "small")
    for words in ((), ("--arm", "mrl_e")):
        assert run(tmp_path, str(trained), "--on", str(on), *words) == 0
    gathered = gather([tmp_path / "out" / "small"])
    assert len([series for series in gathered.series if series.arm == "pca"]) == 2
    assert not [note for note in gathered.notes if "newer" in note or "cut short" in note]


@pytest.mark.slow
def test_vectors_of_a_fixed_size_model_have_unit_length(trained: Path, tmp_path: Path) -> None:
    collection = collections.read(str(write_collection(tmp_path / "small")))
    z = models.find(str(trained), "ff8", cache_dir=str(tmp_path)).embed(collection, collection.second)
    lengths = np.linalg.norm(z.astype(np.float64), axis=1)
    assert z.shape[1] == 8
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "own"), [("mrl", "mrl"), ("ff8", "truncated")])
def test_a_trained_run_is_scored_under_its_arm(arm: str, own: str, trained: Path, tmp_path: Path) -> None:
    on = write_collection(tmp_path / "small")
    assert run(tmp_path, str(trained), "--on", str(on), "--arm", arm) == 0
    rows = rows_of(tmp_path / "out" / "small" / f"tiny_first-{arm}")
    width = 8 if arm == "ff8" else 16
    assert {row["arm"] for row in rows} == {own, "pca", "random_projection", "bm25"}
    assert max(int(row["dim"]) for row in rows) == width
    gathered = gather([tmp_path / "out" / "small"])
    assert gathered.width == width
    assert not [note for note in gathered.notes if "cut short" in note]


def test_scored_pairs_are_a_collection(evaluated: Path, folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = rng.choice(np.array(TEXTS[:-1]), (30, 2))
    write_lines(
        tmp_path / "sts.jsonl", [{"text1": a, "text2": b, "score": float(rng.integers(0, 6))} for a, b in texts]
    )
    assert zero_shot.main([str(folder), "--on", str(tmp_path / "sts.jsonl"), "--out", str(tmp_path), "--cache-dir",
                           str(tmp_path / "cache")]) == 0  # fmt: skip
    rows = rows_of(tmp_path / "sts" / "tiny")
    assert {row["metric"] for row in rows} == {"spearman"}
    assert {int(row["dim"]) for row in rows} == {8, 16}


BAD = {
    "no judgments": ((), "has no judgments, qrels/test.tsv; --unjudged compares its rankings"),
    "judgments without documents": ((), "names no relevant document"),
    "a dim too many": (("--dims", "8,32"), "--dims=32 is more than"),
    "no collection": ((), "there is no such folder or file"),
    "vectors that do not fit": ((), "documents has 3 rows and the collection 42"),
    "vectors without documents": ((), "has no array documents"),
    "an evaluation": ((), "is an evaluation and has no model of its own"),
    "an arm of no run": (("--arm", "mrl"), "--arm=mrl chooses a model of a trained run, and"),
    "a seed of no run": (("--seed", "1"), "--seed=1 chooses a model of a trained run, and"),
    "labelled texts without train": ((), "has a file test.* and neither train.*"),
    "no model": ((), "is no model: it has neither config.yaml"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_ends_in_one_sentence(
    case: str, evaluated: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words, expected = BAD[case]
    model, on = str(folder), str(evaluated / "small")
    if case in ("no judgments", "judgments without documents"):
        on = str(write_collection(tmp_path / "c", qrels="q1\tunknown\t1\n"))
        if case == "no judgments":
            (tmp_path / "c" / "qrels" / "test.tsv").unlink()
    if case == "no collection":
        on = str(tmp_path / "absent")
    if case.startswith("vectors"):
        z, model = np.ones((5, 4), np.float32), str(tmp_path / "z.npz")
        np.savez(model, **({"queries": z, "documents": z[:3]} if "fit" in case else {"queries": z}))
    if case == "an evaluation":
        model = str(evaluated / "out" / "small" / "tiny")
    if case == "labelled texts without train":
        write_lines(tmp_path / "labelled" / "test.jsonl", [{"text": "fox", "label": "a"}])
        on = str(tmp_path / "labelled")
    if case == "no model":
        model = str(tmp_path)
    assert run(tmp_path, model, "--on", on, *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ")
    assert expected in said[-1]
    assert not list((tmp_path / "out").rglob("evaluation.csv"))


Z = np.ones((5, 4), np.float32)
VECTORS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "nothing": ({}, "has none of the arrays queries, documents"),
    "an id without an axis": (
        {"queries": Z, "queries_ids": np.array("q")},
        "queries_ids have the shape (), expected (5,)",
    ),
    "ids of two axes": ({"queries": Z, "queries_ids": np.zeros((5, 1), int)}, "queries_ids have the shape (5, 1)"),
    "ids that are no ids": ({"queries": Z, "queries_ids": np.ones(5)}, "queries_ids have the type float64"),
    "bytes of another encoding": ({"queries": Z, "queries_ids": np.array([b"\xff"])}, "queries_ids are bytes that"),
    "too few ids": ({"queries": Z, "queries_ids": np.arange(3)}, "queries_ids have the shape (3,), expected (5,)"),
    "an id twice": (
        {"queries": Z, "queries_ids": np.array(list("abcda"))},
        "queries_ids repeat 1 of the ids, such as a",
    ),
    "beyond float32": ({"queries": np.full((5, 4), 1e300)}, "queries have 5 rows with NaN or infinite float32"),
    "no numbers": ({"queries": np.array([["a"]])}, "queries have the type <U1"),
    "one axis": ({"queries": Z[0]}, "queries have the shape (4,)"),
    "two widths": ({"queries": Z, "documents": Z[:, :2]}, "has vectors of widths 2, 4"),
    "objects": ({"queries": np.array([None])}, "holds Python objects"),
}


@pytest.mark.parametrize("case", VECTORS)
def test_vectors_that_cannot_be_read_are_named(case: str, tmp_path: Path) -> None:
    arrays, expected = VECTORS[case]
    np.savez(tmp_path / "z.npz", **arrays)
    with pytest.raises(UserError, match=re.escape(expected)):
        models.find(str(tmp_path / "z.npz"))


def test_an_array_by_the_name_of_an_archive_is_named(tmp_path: Path) -> None:
    with (tmp_path / "z.npz").open("wb") as file:
        np.save(file, Z)
    with pytest.raises(UserError, match="holds a single array"):
        models.find(str(tmp_path / "z.npz"))


def test_ids_may_be_bytes_and_other_arrays_are_left_alone(evaluated: Path, tmp_path: Path) -> None:
    collection = collections.read(str(evaluated / "small"))
    ids = np.array(collection.first.ids)[::-1]
    z = np.arange(5 * 4).reshape(5, 4)
    np.savez(tmp_path / "z.npz", queries=z, queries_ids=np.char.encode(ids, "utf-8"), notes=np.array("made today"))
    np.testing.assert_array_equal(
        models.find(str(tmp_path / "z.npz")).embed(collection, collection.first), z[::-1].astype(np.float32)
    )


def test_zero_embeddings_are_counted_and_tables_are_those_of_the_last_command(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    z = np.random.default_rng(0).normal(size=(42, 4))
    z[3:5] = 0
    np.savez(tmp_path / "z.npz", queries=z[5:10], documents=z)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unseen_collection.csv").write_text("of an older command\n")
    for _ in range(2):
        assert run(tmp_path, str(tmp_path / "z.npz"), "--on", str(evaluated / "small")) == 0
    assert "2 of 42 documents have a zero embedding; their ranking is arbitrary" in capsys.readouterr().err
    assert len((tmp_path / "out" / "unseen_collection.csv").read_text().splitlines()) == 1
    with (tmp_path / "out" / "smallest_dims.csv").open(newline="") as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"z-2"}


def test_a_table_of_token_vectors_is_a_model(evaluated: Path, tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "fox": 1, "dog": 2, "lazy": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}]')
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": table}, folder / "model.safetensors")
    on = evaluated / "small"
    assert run(tmp_path, str(folder), "--on", str(on)) == 0
    collection = collections.read(str(on))
    z = models.find(str(folder), cache_dir=str(tmp_path / "cache")).embed(collection, collection.first)
    expected = np.stack([table[tokenizer.encode(text).ids].mean(axis=0, dtype=np.float64) for text in QUERIES])
    np.testing.assert_allclose(z, expected / np.linalg.norm(expected, axis=1)[:, None], atol=1e-6)
    assert gather([tmp_path / "out" / "small"]).width == 8


def test_an_evaluation_that_was_killed_is_not_to_be_resumed(evaluated: Path, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        shutil.copytree(evaluated / "out" / "small" / "tiny", tmp_path / name)
    (tmp_path / "killed" / "evaluation.csv").unlink()
    (note,) = (note for note in gather([tmp_path]).notes if "cut short" in note)
    assert note.startswith("killed was cut short")
    assert "resume" not in note


def test_an_evaluation_of_another_seed_is_whole(evaluated: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluated / "out" / "small" / "tiny", tmp_path / "other")
    run = validate.load_run(tmp_path / "other")
    other = dataclasses.replace(run, rows=[row._replace(seed=1) for row in run.rows])
    assert other.missing() == []
    assert dataclasses.replace(other, dataset={}).missing() == ["untuned-seed0"]
