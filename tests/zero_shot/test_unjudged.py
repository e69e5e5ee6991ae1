"""`--unjudged`: rankings are compared with those of the full width, and nDCG@10 is expected from judged collections."""

import csv
import json
from pathlib import Path

import model_folders
import numpy as np
import pytest

from mrl_jax import zero_shot
from mrl_jax.evaluate import ranking
from mrl_jax.system.errors import UserError
from mrl_jax.zero_shot import models, prediction, retention, unjudged

WORDS = ("quick", "fox", "lazy", "dog", "fell", "stocks", "cafe", "resume", "query", "the")


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Distinct texts."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(3 * count)]
    return list(dict.fromkeys(texts))[:count]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny"
    model_folders.make(path)
    return str(path)


@pytest.fixture(scope="module")
def place(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 60 documents and 9 queries, evaluated."""
    place = tmp_path_factory.mktemp("unjudged")
    write_lines(place / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts_of(60))])
    write_lines(place / "queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate(texts_of(9, 1))])
    assert run(place, model, "--on", str(place / "corpus.jsonl"), "--queries", str(place / "queries.jsonl")) == 0
    return place


def run(place: Path, model: str, *words: str) -> int:
    return zero_shot.main([model, "--unjudged", "--dims", "4,8", *words, "--out", str(place / "out"),
                           "--cache-dir", str(place / "cache")])  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_overlap_is_that_of_brute_force_in_every_way_of_storing(place: Path, model: str) -> None:
    collection = unjudged.read(str(place / "corpus.jsonl"), str(place / "queries.jsonl"), False)
    candidate = models.find(model, cache_dir=str(place / "cache"))
    queries, documents = (
        candidate.embed(collection, side).astype(float) for side in (collection.first, collection.second)
    )

    def best(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        cosines = (x @ y.T) / np.maximum(np.linalg.norm(y, axis=1), 1e-30)
        return np.argsort(-cosines.round(6), axis=1, kind="stable")[:, :10]

    scale = np.abs(documents).max(axis=0) / 127
    full, values = best(queries, documents), {}
    for dim in (4, 8, 16):
        x, y = queries[:, :dim], documents[:, :dim]
        codes = np.rint(y / scale[:dim]) * scale[:dim]
        for stored, found in (("float32", best(x, y)), ("8 bits", best(x, codes))):
            values[stored, dim] = [len({*a} & {*b}) / 10 for a, b in zip(found, full, strict=True)]
    rows = {(row["stored"], int(row["dim"])): row for row in table(place / "out" / "agreement.csv")
            if row["arm"] == "untuned"}  # fmt: skip
    assert {stored for stored, _ in rows} == {"float32", "8 bits", "1 bit"}
    for key, expected in values.items():
        mean = retention.mean_of(np.array(expected))
        assert float(rows[key]["overlap@10"]) == pytest.approx(mean.value, abs=1e-6)
        assert float(rows[key]["overlap@10_low"]) == pytest.approx(mean.low, abs=1e-6)


def test_what_is_expected_of_ndcg_stands_beside_agreement(place: Path) -> None:
    calibration = prediction.load("queries")
    for row in table(place / "out" / "agreement.csv"):
        if row["arm"] == "untuned":
            expected = calibration.expect(float(row["overlap@10"]))
            values = [float(row[f"ndcg@10_kept{end}"]) for end in ("", "_low", "_high")]
            np.testing.assert_allclose(values, expected, atol=1e-4)
        else:
            assert row["ndcg@10_kept"] == ""
    assert {row["share"] for row in table(place / "out" / "smallest_dims.csv")} == {"0.95", "0.98", "0.99"}


def test_documents_stand_for_queries_and_do_not_rank_themselves(place: Path) -> None:
    collection = unjudged.read(str(place / "corpus.jsonl"), None, False)
    assert collection.own is not None
    assert list(collection.first.texts) == [collection.second.texts[row] for row in collection.own[:, 1]]
    assert len(collection.first.texts) == 60
    best = ranking.without_own(np.tile(np.arange(60), (60, 1)), collection.own, 60)
    assert all(row not in found for (_, row), found in zip(collection.own, best, strict=True))


def test_the_draw_of_documents_is_seeded(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"text": text} for text in texts_of(700)])
    first, again = (unjudged.read(str(path), None, False).first.texts for _ in range(2))
    assert len(first) == unjudged.MAX_HELD_OUT
    assert first == again
    assert unjudged.read(str(path), None, False, seed=1).first.texts != first


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".txt"])
def test_a_corpus_has_any_format_and_copies_are_one_document(suffix: str, tmp_path: Path) -> None:
    texts = texts_of(30)
    texts += texts[:5]
    path = tmp_path / f"corpus{suffix}"
    if suffix == ".jsonl":
        write_lines(path, [{"id": i, "title": None if i else "of it", "text": text} for i, text in enumerate(texts)])
    elif suffix == ".txt":
        path.write_text("\n".join(texts) + "\n")
    else:
        gap = "\t" if suffix == ".tsv" else ","
        path.write_text(f"_id{gap}text\n" + "".join(f"{i}{gap}{text}\n" for i, text in enumerate(texts)))
    collection = unjudged.read(str(path), None, False)
    titled = suffix == ".jsonl"  # the title makes the first text another one than its copy
    assert len(collection.second.texts) == 30 + titled
    assert collection.second.texts[0] == ("of it " if titled else "") + texts[0]
    assert collection.second.ids[1:3] == ["1", "2"]


def test_a_query_is_a_document_by_its_id_or_without_ids_by_its_text(tmp_path: Path) -> None:
    texts = texts_of(30)
    corpus = write_lines(tmp_path / "c.jsonl", [{"_id": i, "text": text} for i, text in enumerate(texts)])
    plain = write_lines(tmp_path / "plain.jsonl", [{"text": text} for text in texts])
    queries = write_lines(tmp_path / "q.jsonl", [{"_id": "3", "text": texts[7]}, {"_id": "x", "text": ""}])
    by_id, by_text = (unjudged.read(str(path), str(queries), False) for path in (corpus, plain))
    np.testing.assert_array_equal(by_id.own, [[0, 3]])
    np.testing.assert_array_equal(by_text.own, [[0, 7]])
    assert unjudged.read(str(corpus), str(queries), True).own is None
    assert len(by_id.first.texts) == 1  # the other is empty


BAD = {
    "few documents": ("has 3 distinct documents; needed are at least 20", 3, "q", {}),
    "an empty query": ("has no query with a text", 30, "", {}),
    "an id twice": ("the id a stands before several texts", 30, "q", {"_id": "a"}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_corpus_or_queries_that_say_nothing_are_refused(case: str, tmp_path: Path) -> None:
    expected, count, query, extra = BAD[case]
    corpus = write_lines(tmp_path / "c.jsonl", [{"text": text, **extra} for text in texts_of(count)])
    queries = write_lines(tmp_path / "q.jsonl", [{"text": query}])
    with pytest.raises(UserError, match=expected):
        unjudged.read(str(corpus), str(queries), False)


def test_queries_need_the_option(place: Path, model: str, capsys: pytest.CaptureFixture) -> None:
    assert zero_shot.main([model, "--on", str(place), "--queries", "q.jsonl"]) == 2
    assert "--queries=q.jsonl is for --unjudged" in capsys.readouterr().err


def curves(exponents: dict[str, float], noise: float = 0.0, seed: int = 0) -> prediction.Curves:
    """Made-up measurements on curves of these log exponents."""
    rng, overlaps = np.random.default_rng(seed), np.linspace(0.05, 0.95, 10)
    return {(name, "m"): (overlaps, prediction.curve(overlaps, x) + noise * (1 - overlaps) ** 0.5 * rng.normal(size=10))
            for name, x in exponents.items()}  # fmt: skip


def test_exponents_are_found_again() -> None:
    exponents = {"a": 0.5, "b": 1.0, "c": 1.5}
    made = prediction.calibrate(curves(exponents))
    for name, value in exponents.items():
        assert made.log_exponents[name]["m"] == pytest.approx(value, abs=1e-4)
    assert made.spread == pytest.approx(0, abs=1e-4)


def test_the_interval_is_the_t_interval_of_a_new_exponent() -> None:
    made = prediction.Calibration({"a": {"m": 0.5}, "b": {"m": 1.0}, "c": {"m": 1.5}}, 0.0)
    reach = 4.302652729911275 * 0.5 * (4 / 3) ** 0.5  # t(2) at 97.5 %, from a table
    share, low, high = made.expect(0.7)
    assert share == pytest.approx(1 - 0.3 ** np.exp(1.0))
    assert (low, high) == pytest.approx(tuple(1 - 0.3 ** np.exp(1.0 + x) for x in (-reach, reach)))
    assert made.expect(1.0) == (1, 1, 1)


def test_intervals_of_collections_left_out_hold_what_varies_as_they_do_and_miss_what_does_not() -> None:
    rng = np.random.default_rng(0)
    alike = {str(i): float(x) for i, x in enumerate(rng.normal(1, 0.3, 8))}
    assert np.mean([*prediction.leave_one_out(curves(alike, 0.03)).values()]) > 0.9
    outlier = {str(i): 1 + 0.01 * i for i in range(5)} | {"other": 3.0}
    assert prediction.leave_one_out(curves(outlier))["other"] < 0.5


def test_the_smallest_dim_is_one_from_which_on_all_keep_the_share() -> None:
    shares = {dim: prediction.Share(x, x - 0.05, x + 0.05) for dim, x in ((8, 0.97), (16, 0.9), (32, 0.96), (64, 1.0))}
    assert prediction.smallest(shares, 0.95) == (32, 8, 64)
    assert prediction.smallest(shares, 0.99) == (64, 32, None)


@pytest.mark.parametrize("queries", ["queries", "documents"])
def test_the_stored_calibration_is_whole(queries: str) -> None:
    made = prediction.load(queries)
    assert len(made.log_exponents) >= 3
    assert 0 < made.spread < 0.2
    assert made.coverage.keys() == made.log_exponents.keys()


def test_nothing_is_expected_where_collections_left_out_were_missed(
    place: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    missed = prediction.load("queries")._replace(coverage={"a": 1.0, "b": 0.5})
    monkeypatch.setattr(prediction, "load", lambda queries: missed)
    words = ("--on", str(place / "corpus.jsonl"), "--queries", str(place / "queries.jsonl"))
    assert run(place, model, *words) == 0
    assert "How much of nDCG@10 that keeps cannot be said" in capsys.readouterr().out
    assert {row["ndcg@10_kept"] for row in table(place / "out" / "agreement.csv")} == {""}
