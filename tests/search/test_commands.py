"""The search command line on a small run: build, query, plan, bench, delete, and every mistake in one sentence."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mrl_jax
from mrl_jax import search, train
from mrl_jax.search import commands
from mrl_jax.search.dispatch import saved_plan, search_index
from mrl_jax.search.index import exact, open_index
from mrl_jax.search.queries import leave_out


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    command = [*tiny, "arms=[mrl,mrl_e]", "evaluation.neighbours=false", "evaluation.refit=null"]
    assert train.main([*command, f"results_dir={results}", "run=first"]) == 0
    return results / "tiny" / "first"


@pytest.fixture(scope="module")
def corpus(texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = [json.loads(line) for line in texts["train"].read_text().splitlines()]
    path.write_text("".join(json.dumps({"_id": f"d{i}", "text": line["text"]}) + "\n" for i, line in enumerate(lines)))
    return path


@pytest.fixture(scope="module")
def questions(texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "queries.jsonl"
    path.write_text("".join(texts["test"].read_text() for _ in range(2)))
    return path


@pytest.fixture
def built(run: Path, corpus: Path, tmp_path: Path) -> Path:
    assert search.main(["build", str(run), str(corpus), "--index", str(tmp_path / "index")]) == 0
    return tmp_path / "index"


def test_a_query_finds_what_a_search_by_hand_finds(
    run: Path, corpus: Path, built: Path, capsys: pytest.CaptureFixture
) -> None:
    model = mrl_jax.load(run)
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    z = model.encode([line["text"] for line in lines])
    wanted = np.argsort(-(z @ model.encode(["orbit3 common2 orbit7"])[0]), kind="stable")[:5]
    capsys.readouterr()
    assert search.main(["query", str(built), "orbit3 common2 orbit7", "--k", "5"]) == 0
    ids = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert ids == [lines[i]["_id"] for i in wanted]
    for stages in ("4:240", "4:240,8:200", "exact"):
        assert search.main(["query", str(built), "orbit3 common2 orbit7", "--k", "5", "--plan", stages]) == 0
        assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ids


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-hnsw"])
def test_other_kinds_of_index_answer_too(
    kind: str, run: Path, corpus: Path, tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture
) -> None:
    place = str(tmp_path / "index")
    words = [str(run), str(corpus), "--index", place, "--kind", kind, "--prefix", "8", "--arm", "mrl_e"]
    assert search.main(["build", *words]) == 0
    assert search.main(["query", place, "hockey1 hockey2", "--k", "3"]) == 0
    assert search.main(["bench", place, "--queries", str(questions), "--k", "3"]) == 0
    assert f"{kind} 8:30" in capsys.readouterr().out
    assert search.main(["query", place, "hockey1", "--plan", "exact"]) == 2
    assert "--plan exact needs an index of kind exact; this one is " in capsys.readouterr().err
    assert search.main(["query", place, "hockey1", "--plan", "4:50"]) == 2
    assert "this index has one stage, at 8 dims" in capsys.readouterr().err


def test_a_ranking_by_a_prefix_is_that_of_brute_force_and_takes_no_plan(
    run: Path, corpus: Path, built: Path, capsys: pytest.CaptureFixture
) -> None:
    model, text = mrl_jax.load(run), "orbit3 common2 hockey7"
    z = model.encode([json.loads(line)["text"] for line in corpus.read_text().splitlines()])
    for dim in (4, 8, 16):
        prefixes = z[:, :dim].astype(np.float64) / np.linalg.norm(z[:, :dim], axis=1, keepdims=True)
        wanted = np.sort(prefixes @ model.encode([text], dim, prompt="query")[0])[::-1][:5]
        assert search.main(["query", str(built), text, "--k", "5", "--dim", str(dim)]) == 0
        scores = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
        np.testing.assert_allclose(scores, wanted, atol=6e-5)
    for words, said in {
        ("--dim", "5"): "--dim=5 is not allowed; one of 4, 8, 16",
        ("--dim", "8", "--plan", "4:100"): "--plan=4:100 ranks by all 16 dims; leave --dim=8 out, or the plan",
    }.items():
        assert search.main(["query", str(built), text, *words]) == 2
        assert said in capsys.readouterr().err


def test_a_plan_is_kept_and_used_until_the_documents_change(
    built: Path, questions: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--queries", str(questions), "--k", "5", "--recall", "0.9"]
    assert search.main(["plan", str(built), *words]) == 0
    assert "←" in capsys.readouterr().out
    kept = json.loads((built / "plan.json").read_text())
    index = exact.open_(built)
    assert saved_plan(index, 5) == [tuple(step) for step in kept["steps"]]
    assert saved_plan(index, 6) is None  # it was made for 5
    index.close()
    assert search.main(["delete", str(built), "d0", "none"]) == 0
    assert "1 deleted, 1 were not there; 239 documents" in capsys.readouterr().out
    assert saved_plan(exact.open_(built), 5) is None
    (built / "plan.json").write_text("{")
    assert search.main(["query", str(built), "x"]) == 2
    assert "plan.json is damaged" in capsys.readouterr().err


def test_the_fastest_kind_is_chosen_at_the_end_of_a_build_or_later(
    run: Path, corpus: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    place, words = tmp_path / "index", ["--queries", str(questions), "--k", "3", "--recall", "0.5"]
    assert search.main(["build", str(run), str(corpus), "--index", str(place), "--kind", "auto", *words]) == 0
    *_, header, first = capsys.readouterr().out.partition("were there\n")[2].splitlines()[:2]
    assert header.split() == ["method", "recall", "p", "ms", "for", "1", "MB", "built", "in", "s"]
    assert first.split()[:3] == ["exact", "1.0000", "0.0000"]
    assert saved_plan(open_index(str(place)), 3) or open_index(str(place)).description.kind == "exact"
    assert search.main(["plan", str(place), *words, "--kind", "faiss-flat", "--together", "7"]) == 0
    assert f"{place}: faiss-flat 4:" in (said := capsys.readouterr().out)
    assert "ms for 7" in said
    assert search.main(["plan", str(place), *words]) == 2
    assert "plan without --kind needs an index of kind exact; this one is faiss-flat" in capsys.readouterr().err
    assert search.main(["query", str(place), "orbit3", "--k", "3"]) == 0
    assert search.main(["build", str(run), str(corpus), "--index", str(place)]) == 0
    assert "240 were there" in capsys.readouterr().out


def test_a_query_without_a_known_token_is_named(built: Path, capsys: pytest.CaptureFixture) -> None:
    assert search.main(["query", str(built), "zzz", "orbit3"]) == 0
    said = capsys.readouterr()
    assert "'zzz': no token of this query is in the vocabulary; the ranking is arbitrary" in said.err
    assert "orbit3" not in said.err


def test_bench_says_recall_and_speed_by_method(built: Path, questions: Path, capsys: pytest.CaptureFixture) -> None:
    assert search.main(["bench", str(built), "--queries", str(questions), "--k", "4"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in table[1:]] == ["exact", "4:8", "4:20", "4:40", "4:80", "4:200"]
    recalls = [float(row[1]) for row in table[1:]]
    assert recalls[0] == 1
    assert recalls[-1] > 0.9
    assert all(float(row[2].replace(",", "")) > 0 for row in table[1:])


def test_a_query_that_is_a_document_is_not_its_own_answer(
    run: Path, built: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """BEIR's `ignore_identical_ids`: bench and plan count what is left without the document of the query's id."""
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    asked = [*lines[::2], {"_id": "other", "text": lines[1]["text"]}, {"text": lines[1]["text"]}]
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps(line) + "\n" for line in asked))
    said = f"{queries}: 120 of 122 queries have the id of a document, which is left out of their results"
    for words in (["bench"], ["plan", "--recall", "0.9"]):
        assert search.main([words[0], str(built), "--queries", str(queries), "--k", "4", *words[1:]]) == 0
        printed = capsys.readouterr()
        assert said in printed.err
        assert "1.0000" in printed.out
    model, index = mrl_jax.load(run), exact.open_(built)
    z, of_queries = (model.encode([line["text"] for line in part]) for part in (lines, asked))
    own = np.array([*range(0, 240, 2), -1, -1])
    found = leave_out(search_index(index, of_queries, 5, None), own)
    cosines = of_queries.astype(np.float64) @ z.astype(np.float64).T
    cosines[np.arange(120), own[:120]] = -np.inf
    np.testing.assert_allclose(found.scores, -np.sort(-cosines, axis=1)[:, :4], atol=1e-6)
    assert found.rows.shape == (122, 4)
    assert not (found.rows == own[:, None]).any()


def test_a_second_build_adds_only_what_is_new(run: Path, corpus: Path, built: Path, tmp_path: Path, capsys) -> None:
    longer = tmp_path / "longer.jsonl"
    longer.write_text(
        corpus.read_text() + '{"_id": "new", "title": "garden1", "text": "garden2"}\n{"id": 7, "text": ""}\n'
    )
    capsys.readouterr()
    assert search.main(["build", str(run), str(longer), "--index", str(built)]) == 0
    assert "242 documents, 2 added now, 240 were there" in capsys.readouterr().out
    index = exact.open_(built)
    assert index.find(["new"])["new"].text == "garden1 garden2"
    index.close()
    changed = tmp_path / "changed.jsonl"
    changed.write_text('{"_id": "new", "text": "garden3"}\n')
    assert search.main(["build", str(run), str(changed), "--index", str(built)]) == 2
    assert "id new is in the index with another text; ids are unique (or --replace it)" in capsys.readouterr().err
    assert search.main(["build", str(run), str(changed), "--index", str(built), "--replace"]) == 0
    assert exact.open_(built).find(["new"])["new"].text == "garden3"


def test_a_killed_build_is_continued(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    corpus, place = tmp_path / "corpus.jsonl", tmp_path / "index"
    lines = [{"_id": str(i), "text": f"orbit{i % 30} common{i % 7} hockey{i}"} for i in range(20_000)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["build", str(run), str(corpus), "--index", str(place)]
    process = subprocess.Popen([sys.executable, "-m", "mrl_jax.search", *command], stderr=subprocess.DEVNULL)
    while process.poll() is None and (
        not (place / "vectors.f32").exists() or not (place / "vectors.f32").stat().st_size
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert search.main(command) == 0
    said = capsys.readouterr().out
    assert "20,000 documents" in said
    index = exact.open_(place)
    index.verify()
    rows = np.flatnonzero(index.verify())
    stored = {one.id: z for one, z in zip(index.documents(rows), index.vectors(rows), strict=True)}
    some = [lines[i] for i in range(0, 20_000, 501)]
    z = mrl_jax.load(run).encode([line["text"] for line in some])
    np.testing.assert_allclose([stored[line["_id"]] for line in some], z, atol=1e-6)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"_id": "a", "text": "x"}\n{"_id": "b"}\n', "line 2: text is missing or not a string"),
        ('{"text": "x"}\n', "line 1: _id is missing or not a string; every line has _id and text"),
        ('{"_id": "", "text": "x"}\n', "line 1: _id is missing"),
        ('{"_id": true, "text": "x"}\n', "line 1: _id is missing"),
        ('{"_id": "a", "text": 3}\n', "line 1: text is missing or not a string"),
        ("[1]\n", "line 1: [1] is not a JSON object"),
        ("\n{\n", "line 2: not JSON"),
        ('{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n', "id a is in the index with another text"),
        ("", "is empty"),
        ("\n \n", "has no documents"),
    ],
)
def test_a_mistake_in_a_corpus_is_named(lines: str, said: str, run: Path, tmp_path: Path, capsys) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(lines)
    capsys.readouterr()
    assert search.main(["build", str(run), str(corpus), "--index", str(tmp_path / "index")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_mistakes_in_the_command_are_named(run: Path, corpus: Path, built: Path, tmp_path: Path, capsys) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"text": "a"}\n{"query": "b"}\n')
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "a"}\n')
    other = tmp_path / "other"
    shutil.copytree(run, other)
    coarse, whole = tmp_path / "coarse", tmp_path / "whole"
    with_prefix = ["build", str(run), str(corpus), "--prefix", "8", "--index"]
    assert search.main([*with_prefix, str(coarse), "--kind", "faiss-ivf", "--coarse", "4"]) == 0
    assert search.main([*with_prefix, str(whole), "--kind", "faiss-rabitq"]) == 0
    assert search.main(["query", str(whole), "orbit1", "--plan", "16:20"]) == 0
    capsys.readouterr()
    for words, said in (
        (["build", "nowhere", str(corpus), "--index", "x"], "nowhere"),
        (["build", str(run), str(tmp_path / "none"), "--index", "x"], "none: there is no such file"),
        (
            ["build", str(run), str(tmp_path), "--index", "x"],
            f"this is a folder; a file is needed, as {run} reads texts and no pictures",
        ),
        (["query", str(built), "x", "--image", "a.png"], "the model of this index reads texts, and no pictures"),
        (["bench", str(built), "--queries", str(tmp_path)], "this is a folder; a file is needed"),
        (["query", str(corpus), "x"], "is not an index: this is a file; a folder is needed"),
        (["query", str(built), "a", " "], "the text to search for is empty (text 2 of 2)"),
        (["query", "", "a"], "'' is no place for an index; give a folder"),
        (["build", str(run), str(corpus), "--index", "ftp://host"], "'ftp://host' is no place for an index"),
        (
            ["build", str(run), str(corpus), "--index", "x", "--prefix", "5"],
            "--prefix=5 is not allowed; one of 4, 8, 16",
        ),
        (
            ["build", str(run), str(corpus), "--index", "x", "--kind", "fais-flat"],
            "--kind=fais-flat is unknown (did you mean faiss-flat?); allowed: exact, faiss-flat",
        ),
        (
            ["build", str(run), str(corpus), "--index", str(tmp_path / "x.db"), "--kind", "milvus-nsw"],
            "--kind=milvus-nsw is unknown (did you mean milvus-hnsw?); allowed: milvus-autoindex",
        ),
        (["build", str(run), str(corpus), "--index", "x", "--arm", "mlr"], "arm=mlr is unknown"),
        (["build", str(run), str(corpus), "--index", str(built), "--prefix", "8"], "was built with --prefix 4"),
        (["build", str(run), str(corpus), "--index", str(built), "--arm", "mrl_e"], "was built by another model"),
        (["query", str(tmp_path / "none"), "x"], "is not an index: there is no such folder"),
        (["query", str(built), "x", "--plan", "5:10"], "a stage at dim 5 is not possible; the dims are [4, 8, 16]"),
        (["query", str(built), "x", "--plan", "4-10"], "auto, exact, or stages such as 64:200"),
        (["build", str(run), str(corpus), "--index", "x", "--coarse", "4"], "--coarse=4 is for --kind faiss-ivf; this"),
        ([*with_prefix, "x", "--kind", "faiss-ivf", "--coarse", "16"], "--coarse=16 is not allowed; one of 4, 8"),
        (
            [*with_prefix, str(coarse), "--kind", "faiss-ivf", "--coarse", "8"],
            "was built with --coarse 4; leave --coar",
        ),
        (["query", str(whole), "x", "--plan", "8:20"], "--plan=8:20: this index has one stage, at 16 dims"),
        (["query", str(built), "x", "--plan", "8:20"], "the first stage can scan at most 4 dims"),
        (["query", str(built), "x", "--plan", "4:5", "--k", "6"], "a stage keeps 5 documents; at least k=6"),
        (["plan", str(built), "--queries", str(queries)], "line 2: text is missing"),
        (["plan", str(built), "--queries", str(few)], "1 held-out queries cannot certify recall 0.99"),
        (["query", "http://127.0.0.1:1", "x"], "127.0.0.1:1"),
        (["build", str(run), str(corpus), "--index", "x", "--kind", "auto"], "--kind=auto needs --queries"),
        (
            ["build", str(run), str(corpus), "--index", "x", "--kind", "auto", "--queries", str(few)],
            "1 held-out queries cannot certify recall 0.99",
        ),
        (
            ["plan", str(built), "--queries", str(few), "--kind", "faiss-hnws"],
            "--kind=faiss-hnws is unknown (did you mean faiss-hnsw?); allowed: exact, faiss-flat",
        ),
        (["plan", str(built), "--queries", str(few), "--kind", "auto", "--budget", "3"], "--budget is for a plan"),
    ):
        assert search.main(words) == 2, words
        error = capsys.readouterr().err
        assert said in error, error
        assert error.count("\n") == 1, error
    assert not Path("x").exists()
    for words in (["query", str(built), "x", "--k", "0"], ["quary"], []):
        assert search.main(words) == 2
    for flag, word in (("--recall", "2"), ("--recall", "most"), ("--delta", "0")):
        assert search.main(["plan", str(built), "--queries", str(few), flag, word]) == 2
        assert f"argument {flag}: {word} is not allowed; it must be between 0 and 1" in capsys.readouterr().err
    assert search.main(["query", str(built), "orbit1", "--k", "999"]) == 0
    assert "there are only 240 documents" in capsys.readouterr().err


def test_what_steers_a_terminal_is_not_printed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    corpus, place = tmp_path / "corpus.jsonl", str(tmp_path / "index")
    corpus.write_text(json.dumps({"_id": "a\nb\x1b[2J", "text": "orbit1 \x1b]0;title\x07 \r orbit2\u202e"}) + "\n")
    assert search.main(["build", str(run), str(corpus), "--index", place]) == 0
    capsys.readouterr()
    assert search.main(["query", place, "orbit1\x1b[1m", "\rorbit2"]) == 0
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))
    assert said.out.count(r"a\nb\x1b[2J  orbit1 \x1b]0;title\x07 orbit2\u202e") == 2


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_corpus_may_have_any_line_ends(end: str, run: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "corpus.jsonl"
    other.write_bytes(corpus.read_bytes().replace(b"\n", end.encode()))
    assert search.main(["build", str(run), str(other), "--index", str(tmp_path / "index")]) == 0
    assert "240 documents" in capsys.readouterr().out


def test_too_few_documents_for_a_kind_are_said_when_it_is_built(
    run: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    place = str(tmp_path / "index")
    assert search.main(["build", str(run), str(corpus), "--index", place, "--kind", "faiss-pq"]) == 2
    error = capsys.readouterr().err
    assert "faiss-pq needs at least 256 documents with different prefixes; there are 2" in error
    assert error.count("\n") == 1


def test_copies_do_not_hide_the_best_document(run: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    many = tmp_path / "corpus.jsonl"
    copies = (json.dumps({"_id": f"copy{i}", "text": "hockey1 hockey2"}) + "\n" for i in range(1500))
    many.write_text("".join(copies) + corpus.read_text())
    answers = []
    for kind in ("faiss-ivf", "faiss-hnsw", "exact"):
        place = str(tmp_path / kind)
        words = ["build", str(run), str(many), "--index", place, "--kind", kind, "--prefix", "8"]
        assert search.main(words) == 0
        capsys.readouterr()
        assert search.main(["query", place, "orbit3 common2 orbit7", "--k", "5"]) == 0
        answers.append([line.split()[1:3] for line in capsys.readouterr().out.splitlines()])
        assert search.main(["query", place, "orbit3", "--k", "1740"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1740
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 5


def test_a_search_that_falls_short_says_so_once(built: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def lose(index, z, k, stages, dim):
        found = search_index(index, z, k, stages, dim)
        return found._replace(rows=np.where(np.arange(k) < 2, found.rows, -1))

    monkeypatch.setattr(commands, "search_index", lose)
    assert search.main(["query", str(built), "orbit3", "hockey1", "--k", "5"]) == 0
    said = capsys.readouterr()
    assert said.err.count("exact finds only 2 of 240 documents") == 1
    assert said.out.count(" d") == 4


def test_a_moved_run_is_given_anew_and_another_model_is_refused(
    run: Path, built: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(run, tmp_path / "moved")
    assert search.main(["query", str(built), "orbit1", "--run", str(tmp_path / "moved")]) == 0
    command = [*tiny, "evaluation.neighbours=false", "arms=[mrl]", "trainer.steps=2", "evaluation.refit=null"]
    assert train.main([*command, f"results_dir={tmp_path}", "run=other"]) == 0
    capsys.readouterr()
    assert search.main(["query", str(built), "orbit1", "--run", str(tmp_path / "tiny" / "other")]) == 2
    assert "the index was built by another model" in capsys.readouterr().err
