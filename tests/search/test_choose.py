"""The kind of index that is chosen: the fastest of those that keep the recall, and it stays so."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from mrl_jax.search import choose, dispatch
from mrl_jax.search import plan as plans
from mrl_jax.search.index import Description, Document, exact, open_index
from mrl_jax.search.index.faiss import FaissIndex
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
    monkeypatch.setattr(plans, "SIZES_PER_K", (50, 20, 5, 2, 1))


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
    fast = {("exact", "exact")} if kind == "exact" else {(kind, f"8:{n}") for n in (10, 20, 50, 100, 200, 500, 1000)}
    slow_down(monkeypatch, *fast)
    tried: list[choose.Method] = []
    kinds = ["exact", "faiss-flat", "faiss-hnsw"]
    chosen = choose.choose(index, kinds, QUERIES, 10, target=0.9, show=tried.append)
    assert chosen is not None
    assert chosen.kind == kind
    assert [one.kind for one in tried] == ["exact"] * 3 + kinds[1:]
    place = str(index.folder)
    index.close()
    again = open_index(place)
    assert again.description == Description(WIDTH, DIMS, 8, "model", "run", kind)
    assert isinstance(again, FaissIndex) == (kind != "exact")
    assert dispatch.saved_plan(again, 10) == chosen.stages
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
    slow_down(monkeypatch, ("exact", "4:1000"), ("exact", "4:500"))
    monkeypatch.setattr(plans, "SIZES_PER_K", (2, 1))
    tried: list[choose.Method] = []
    chosen = choose.choose(index, ["exact"], QUERIES, 10, target=0.97, show=tried.append)
    assert chosen is not None
    assert chosen.stages is None
    lost = [one for one in tried if one.seconds is None]
    assert lost
    for one in lost:
        assert one.p > 0.05 / 2
        found = dispatch.search_index(index, QUERIES, 10, one.stages)
        truth = best_of_blocks(index.blocks(), QUERIES, 10).rows
        assert one.quality == pytest.approx(plans.recall(found.rows, truth).mean())
    assert choose.choose(index, ["faiss-flat"], QUERIES, 10, target=0.999999, delta=0.9999999) is None
    assert index.description.kind == "exact"


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
