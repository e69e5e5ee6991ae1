"""Hard negatives: those of sentence-transformers, those of a loop over the rules, and what the command says."""

import json
import tarfile
from pathlib import Path

import mining_cases
import model_folders
import numpy as np
import pytest
from helpers import write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax import search
from mrl_jax.data import DataConfig, load
from mrl_jax.search import mining
from mrl_jax.search.mining import Rules

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "mining_oracle.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ORACLE)
def test_negatives_are_those_of_sentence_transformers(name: str) -> None:
    options, expected = ORACLE[name]["options"], {(a, d): rest for a, d, *rest in ORACLE[name]["rows"]}
    z, several = mining_cases.vectors(), "several" in name
    anchors = np.stack([z[f"a{i}"] for i in range(mining_cases.ANCHORS)])
    documents = np.stack([z[f"d{i}"] for i in range(mining_cases.DOCUMENTS)])
    positives = np.array([(int(a[1:]), int(d[1:])) for a, d in mining_cases.pairs(several)])
    rules = Rules(
        options["num_negatives"],
        options["range_min"],
        options["range_max"],
        options.get("absolute_margin"),
        options.get("relative_margin"),
    )
    chosen, _ = mining.choose(anchors, documents, positives, np.zeros((0, 2), int), rules)
    found = {(f"a{a}", f"d{d}"): [f"d{row}" for row in chosen[a]] for a, d in positives.tolist() if chosen[a, 0] >= 0}
    assert found == expected


def by_a_loop(anchors, documents, positives, own, rules: Rules) -> list[list[int]]:
    """For each anchor the rows to choose from."""
    z, x = anchors.astype(np.float64), documents.astype(np.float64)
    relevant = {tuple(pair) for pair in positives.tolist()}
    excluded = relevant | {tuple(pair) for pair in own.tolist()}
    result = []
    for a in range(len(z)):
        score = [float(np.float32((x[d] * z[a]).sum())) for d in range(len(x))]
        least = min(score[d] for d in range(len(x)) if (a, d) in relevant)
        ranked = [d for d in sorted(range(len(x)), key=lambda d: (-score[d], d)) if (a, d) not in excluded]
        ranked = ranked[: rules.stop]
        if rules.margin is not None:
            ranked = [d for d in ranked if score[d] <= least - rules.margin]
        if rules.relative_margin is not None:
            ranked = [d for d in ranked if score[d] <= least - abs(least) * rules.relative_margin]
        result.append(ranked[rules.start :])
    return result


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rules=st.builds(
        Rules,
        negatives=st.integers(1, 3),
        start=st.integers(0, 3),
        stop=st.integers(6, 40),
        margin=st.sampled_from([None, 0.0, 0.1]),
        relative_margin=st.sampled_from([None, 0.05]),
        sampling=st.sampled_from(["top", "random"]),
        seed=st.integers(0, 3),
    ),
)
def test_negatives_are_those_of_the_rules_whatever_the_blocks(seed: int, rules: Rules) -> None:
    """Anchors of many positives and of one, copies of documents, and anchors that are documents."""
    rng = np.random.default_rng(seed)
    anchors, documents = (rng.normal(size=(n, 4)).astype(np.float32) for n in (12, 25))
    documents[20:] = documents[:5]
    documents[7] = anchors[5] = 0
    pairs = np.stack([np.arange(12), rng.integers(0, 25, 12)], axis=1)
    positives = np.unique(np.concatenate([pairs, [(0, d) for d in range(6)], rng.integers(0, 12, (6, 2))]), axis=0)
    own = np.array([(a, d) for a, d in ((1, 3), (2, 9)) if [a, d] not in positives.tolist()], int).reshape(-1, 2)
    expected = by_a_loop(anchors, documents, positives, own, rules)
    expected[5] = []  # it is as near to one document as to any other
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "BLOCK_ANCHORS", 5)
        chosen, counts = mining.choose(anchors, documents, positives, own, rules)
    assert counts.left == sum(map(len, expected))
    for rows, candidates in zip(chosen.tolist(), expected, strict=True):
        if len(candidates) < rules.negatives:
            assert set(rows) == {-1}
        elif rules.sampling == "top":
            assert rows == candidates[: rules.negatives]
        else:
            assert len(set(rows)) == rules.negatives
            assert rows == [d for d in candidates if d in rows]
    again, _ = mining.choose(anchors, documents, positives, own, rules)
    np.testing.assert_array_equal(again, chosen)


WORDS = ("the", "quick", "fox", "lazy", "dog", "stocks", "fell", "cafe", "resume")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mining") / "tiny"
    model_folders.make(folder)
    return str(folder)


def pair_rows(count: int) -> list[dict]:
    rng = np.random.default_rng(1)
    return [
        {"query": " ".join(rng.choice(WORDS, 3)) + f" {i}", "answer": " ".join(rng.choice(WORDS, 4)) + f" x{i}"}
        for i in range(count)
    ]


def run(place: Path, model: str, *words: str, rows: list[dict] | None = None) -> int:
    file = write_table(place / "pairs.jsonl", pair_rows(20) if rows is None else rows)
    out = ["--out", str(place / "mined.jsonl")] if "--out" not in words else []
    return search.main(["mine", model, file, "--cache-dir", str(place / "cache"), *out, *words])


def test_the_file_is_read_as_pairs_with_several_negatives(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pair_rows(20)
    rows.append({"query": rows[0]["query"], "answer": rows[1]["answer"]})  # a second answer
    rows.append({"query": rows[2]["answer"], "answer": rows[3]["answer"]})  # a query that is a document
    corpus = write_table(
        tmp_path / "corpus.jsonl",
        [{"_id": "1", "title": "quick", "text": "fox"}, {"_id": "2", "text": " "}, {"_id": "3", "text": "lazy"}],
    )
    assert run(tmp_path, model, "--negatives", "3", "--corpus", corpus, "--range", "0:30", rows=rows) == 0
    printed = capsys.readouterr()
    assert "mined.jsonl: 22 of 22 pairs, 3 negatives each" in printed.out
    assert "of each of 21 anchors, without 22 known positives and 1 copies of an anchor" in printed.out
    mined = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    assert [(row["anchor"], row["positive"]) for row in mined] == [(row["query"], row["answer"]) for row in rows]
    documents = {row["answer"] for row in rows} | {"quick fox", "lazy"}
    known = {(row["query"], row["answer"]) for row in rows}
    for row in mined:
        assert len(set(row["negatives"])) == 3
        assert set(row["negatives"]) <= documents - {row["anchor"]}
        assert not any((row["anchor"], text) in known for text in row["negatives"])
    assert mined[0]["negatives"] == mined[20]["negatives"]
    test = write_table(tmp_path / "test.jsonl", [{"anchor": "a", "positive": "b"}])
    data = load(DataConfig("pairs", train=str(tmp_path / "mined.jsonl"), test=test))
    assert data.train.columns.shape[1] == 5


def test_pairs_without_enough_candidates_are_left_out_and_counted(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, model, "--negatives", "2", "--range", "1:15", "--margin", "0.02") == 0
    out = capsys.readouterr().out
    count = len((tmp_path / "mined.jsonl").read_text().splitlines())
    assert 0 < count < 20
    assert f"mined.jsonl: {count} of 20 pairs, 2 negatives each" in out
    assert f"{20 - count} pairs are left out: their anchors have fewer than 2 candidates" in out
    assert " score less than 0.02 below a positive" in out
    assert " are the first 1 of the rest" in out


def test_anchors_without_a_known_word_have_no_negatives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(Path(__file__).parent.parent / "data" / "stored_runs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    rows = [json.loads(line) for line in (tmp_path / "pairs_train.jsonl").read_text().splitlines()[:20]]
    rows[3]["anchor"] = "unheard"
    assert run(tmp_path, str(tmp_path / "runs" / "pairs" / "whole"), "--negatives", "2", rows=rows) == 0
    out = capsys.readouterr().out
    assert "mined.jsonl: 19 of 20 pairs" in out
    assert "1 pairs are left out: " in out
    assert "knows no word of their anchors" in out
    assert "candidates" not in out


SCORED = [{"sentence1": "a", "sentence2": "b", "score": 1.0}]


@pytest.mark.parametrize(
    ("words", "rows", "said"),
    [
        (["--negatives", "20"], None, "--negatives=20 is not allowed; there are 20 documents"),
        (["--negatives", "0"], None, "0 is not allowed; it must be a whole number of at least 1"),
        (["--range", "9:3"], None, "--range=9:3 is not allowed; STOP is START + --negatives=5 or more"),
        (["--range", "10:12"], None, "--range=10:12 is not allowed; STOP is START + --negatives=5 or more"),
        (["--range", "10"], None, "10 is not allowed; START:STOP, such as 10:100"),
        (["--range=-1:10"], None, "-1:10 is not allowed; START:STOP"),
        (["--margin", "-0.1"], None, "--margin=-0.1 is not allowed; 0 to 2"),
        (["--margin", "nan"], None, "--margin=nan is not allowed; 0 to 2"),
        (["--margin", "2"], None, "pairs.jsonl has 5 negatives: the 50 nearest documents of each of 20 anchors"),
        (["--relative-margin", "0.95"], None, "not allowed; 0 to 0.5; 0.05 allows scores up to 95 % of the positive's"),
        (["--sampling", "rando"], None, "invalid choice: 'rando'"),
        (["--sampling-seed", "-1"], None, "--sampling-seed=-1 is not allowed; 0 or more"),
        (["--marign", "1"], None, "unrecognized arguments: --marign"),
        (["--arm", "mrl"], None, "--arm=mrl chooses a model of a trained run"),
        (["--out", "mined.csv"], None, "--out=mined.csv is not allowed; a file ending in .jsonl or .ndjson"),
        (["--corpus", "nowhere.jsonl"], None, "nowhere.jsonl: there is no such file"),
        ([], [], "is empty"),
        ([], SCORED, "has scores, which say of no text that it is a negative"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    words: list[str], rows: list[dict] | None, said: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, model, *words, rows=rows) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("mined*"))


def test_a_model_or_a_file_that_is_not_there_is_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, str(tmp_path / "nothing")) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert search.main(["mine", model, str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "mined.jsonl")]) == 2
    assert "PAIRS=" in capsys.readouterr().err
    (tmp_path / "mined.jsonl").write_text("")
    assert run(tmp_path, model) == 2
    assert "mined.jsonl exists; delete it, or choose another name" in capsys.readouterr().err
