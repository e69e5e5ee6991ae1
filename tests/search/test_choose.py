"""The kind of index that is chosen: the fastest of those that keep the recall, and it stays so."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from mrl_jax.search import choose, dispatch, timing
from mrl_jax.search import plan as plans
from mrl_jax.search.index import Description, Document, exact, open_index
from mrl_jax.search.index.faiss import FaissIndex
from mrl_jax.search.queries import SearchResults
from mrl_jax.search.truth import best_of_blocks
from mrl_jax.system.errors import UserError

WIDTH, DIMS, COUNT = 16, (4, 8, 16), 2000


def unit_vectors(count: int, seed: int) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(count, WIDTH)) / np.arange(1, WIDTH + 1)
    return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), np.float32)


QUERIES = unit_vectors(300, 1)


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is compiled for each size of a shortlist."""
    monkeypatch.setattr(choose, "LONGEST", 50)
    monkeypatch.setattr(choose, "STEPS", 5)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "MAX_BATCHES", 5)


@pytest.fixture
def index(tmp_path: Path):
    made = exact.create(tmp_path / "index", Description(WIDTH, DIMS, 8, "model", "run"))
    made.add([Document(f"id {i}", f"text {i}") for i in range(COUNT)], unit_vectors(COUNT, 0))
    yield made
    made.close()


def slow_down(monkeypatch: pytest.MonkeyPatch, *fast: tuple[str, str]) -> None:
    """Every search takes 20 ms longer, except those of (kind, stages)."""
    inner = dispatch.search_index

    def search(index, z, k, stages, dim=None):
        name = "exact" if stages is None else ",".join(f"{dim}:{size}" for dim, size in stages)
        if (index.description.kind, name) not in fast:
            time.sleep(0.02)
        return inner(index, z, k, stages, dim)

    monkeypatch.setattr(choose, "search_index", search)


@pytest.mark.parametrize("kind", ["exact", "faiss-flat", "faiss-hnsw"])
def test_the_fastest_kind_is_taken_and_kept(kind: str, index, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {("exact", "exact")} if kind == "exact" else {(kind, f"8:{n}") for n in choose.shortlist_sizes(10, COUNT)}
    slow_down(monkeypatch, *fast)
    tried: list[choose.Method] = []
    kinds = ["exact", "faiss-flat", "faiss-hnsw"]
    chosen = choose.choose(index, kinds, QUERIES, 10, target=0.9, show=tried.append)
    assert chosen is not None
    assert chosen.kind == kind
    pilots = [one for one in tried if one.stages is not None and one.p is None]
    assert [one.kind for one in pilots] == ["exact"] * 2 + kinds[1:]
    certified = [one for one in tried if one.stages is not None and one.p is not None]
    assert len(certified) <= choose.FINALISTS
    assert chosen in (certified if kind != "exact" else tried)
    place = str(index.folder)
    index.close()
    again = open_index(place)
    assert again.description == Description(WIDTH, DIMS, 8, "model", "run", kind)
    assert isinstance(again, FaissIndex) == (kind != "exact")
    assert dispatch.saved_plan(again, 10) == chosen.stages
    if kind != "exact":  # it was certified with the queries that did not find it
        asked = QUERIES[np.random.default_rng(0).permutation(len(QUERIES))[len(QUERIES) // choose.PILOT :]]
        rows = dispatch.search_index(again, asked, 10, chosen.stages).rows
        assert chosen.quality == pytest.approx(
            plans.recall(rows, best_of_blocks(again.blocks(), asked, 10).rows).mean()
        )
    # It finds what it promised, of other queries too, and nothing of the kinds that were not taken is left.
    others = unit_vectors(500, 2)
    found = dispatch.search_index(again, others, 10, dispatch.parse_plan(again, "auto", 10))
    assert plans.recall(found.rows, best_of_blocks(again.blocks(), others, 10).rows).mean() > 0.89
    left = {path.name.rpartition("-")[0] for path in index.folder.glob("*.index")}
    assert left == {kind} - {"exact"}
    assert bool(list(index.folder.glob("*.layout"))) == (kind == "exact")
    again.close()
    writer = open_index(place, write=True)
    writer.delete(["id 5"])
    writer.close()
    assert dispatch.saved_plan(open_index(place), 10) is None  # it was for other documents


def test_what_does_not_keep_the_target_is_neither_timed_nor_taken(index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random directions beyond a prefix of 4: a short list by it keeps too little, however fast it is."""
    slow_down(monkeypatch, ("exact", "4:10"), ("exact", "4:20"))
    monkeypatch.setattr(choose, "LONGEST", 2)
    tried: list[choose.Method] = []
    chosen = choose.choose(index, ["exact"], QUERIES, 10, target=0.97, show=tried.append)
    assert chosen is not None
    assert chosen.stages is None
    lost = [one for one in tried if one.seconds is None]
    assert {one.stages[0][0] for one in lost if one.stages} == {4, 8}
    assert choose.choose(index, ["faiss-flat"], QUERIES, 10, target=0.97) is None
    assert index.description.kind == "exact"


def test_no_more_choices_fall_short_than_delta_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: a list of `size` misses each of ten results with a chance of 1.4 / size, and every kind alike."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(choose, "LONGEST", 40)
    monkeypatch.setattr(choose, "STEPS", 40)
    monkeypatch.setattr(timing, "prepare", lambda index: 0)
    monkeypatch.setattr(timing, "seconds", lambda search, queries, stages, together: stages[0][1])
    truth = np.arange(10)

    def search(index, z, k, stages):
        missed = rng.random((len(z), 10)) < 1.4 / stages[0][1]
        return SearchResults(np.zeros((len(z), 10)), np.where(missed, -1, truth))

    class Fake:
        description = Description(WIDTH, DIMS, 8, "", "", "faiss-flat")

        def __len__(self) -> int:
            return 1000

    monkeypatch.setattr(choose, "search_index", search)
    goal = plans.Goal(np.tile(truth, (300, 1)), 10, 0.95, "recall", None)
    short, chosen, level = 0, [], 0.2
    for _ in range(400):
        (found,) = choose.try_kind(Fake(), QUERIES[:100], goal._replace(truth=goal.truth[:100]), 300, level, 1)
        method = choose.certify(Fake(), found, QUERIES, goal, level, 1)
        if method.seconds is not None:
            chosen.append(method.stages[0][1])
            short += 1.4 / method.stages[0][1] > 0.05
    assert short <= 400 * level + 3 * np.sqrt(400 * level * (1 - level))
    assert len(chosen) > 350
    assert np.median(chosen) < 1.5 * 1.4 / 0.05  # the shortest that is good enough has 28


def test_a_kind_that_cannot_be_built_is_left_out(index, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def missing():
        raise UserError("an index of kind faiss-flat needs more packages: pip install 'mrl_jax[faiss]'")

    monkeypatch.setattr("mrl_jax.search.index.faiss.library", missing)
    chosen = choose.choose(index, ["faiss-hnsw", "exact"], QUERIES, 10, target=0.9)
    assert chosen is not None
    assert chosen.kind == "exact"
    assert "faiss-hnsw is left out: an index of kind faiss-flat needs more packages" in capsys.readouterr().err


def test_a_query_that_is_a_document_is_left_out_of_its_results(index) -> None:
    own = np.arange(300)
    chosen = choose.choose(index, ["exact", "faiss-flat"], unit_vectors(COUNT, 0)[:300], 10, target=0.9, own=own)
    assert chosen is not None


def test_too_few_queries_and_kinds_that_there_are_not_are_named(index, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"30 held-out queries cannot certify recall 0\.99 at delta=0\.05"):
        choose.choose(index, ["exact", "faiss-hnsw"], QUERIES[:30], 10)
    with pytest.raises(UserError, match=r"--kind=faiss-hsnw is unknown \(did you mean faiss-hnsw\?\)"):
        choose.kinds_of(str(tmp_path), "exact,faiss-hsnw")
    with pytest.raises(UserError, match="--kind=auto is for an index in a folder, whose kind can change"):
        choose.kinds_of("http://127.0.0.1:19530", "auto")
    assert choose.kinds_of(str(tmp_path), "faiss-flat, exact,faiss-flat") == ["faiss-flat", "exact"]


def test_a_plan_of_an_earlier_version_is_one_of_exact(index) -> None:
    plans.save(index.folder, index.version, 10, "recall", 0.9, 0.05, ((4, 100),))
    path = index.folder / "plan.json"
    content = json.loads(path.read_text())
    assert content.pop("kind") == "exact"
    content.pop("crc")
    path.write_text(json.dumps(content | {"crc": plans.zlib.crc32(json.dumps(content).encode())}))
    assert dispatch.saved_plan(index, 10) == [(4, 100)]
    index.set_kind("faiss-flat")
    assert dispatch.saved_plan(index, 10) is None
    plans.save(index.folder, index.version, 10, "recall", 0.9, 0.05, ((4, 100),), "faiss-flat")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):  # an index of FAISS has one prefix, 8
        dispatch.saved_plan(index, 10)


def test_a_plan_of_a_search_that_ranked_more_is_none_of_this_one(index) -> None:
    """Earlier versions certified shortlists of faiss-hnsw8 that are ranked as a whole."""
    index.set_kind("faiss-hnsw8")
    plans.save(index.folder, index.version, 10, "recall", 0.9, 0.05, ((WIDTH, 100),), "faiss-hnsw8")
    assert dispatch.saved_plan(index, 10) == [(WIDTH, 100)]
    path = index.folder / "plan.json"
    content = json.loads(path.read_text())
    del content["ranked"], content["crc"]
    path.write_text(json.dumps(content | {"crc": plans.zlib.crc32(json.dumps(content).encode())}))
    assert dispatch.saved_plan(index, 10) is None
