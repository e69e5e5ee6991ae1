"""Every entry of BACKENDS can be recognised, created, opened and searched; its kinds and errors come from the table."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from mrl_jax.search.index import BACKENDS, Description, Document, base, create_index, exists, open_index, rerank
from mrl_jax.search.index.base import unit
from mrl_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
PLACES = {"exact": "index", "faiss": "index", "milvus-lite": "index.db", "milvus": "http://127.0.0.1:1"}


def description(kind: str) -> Description:
    return Description(16, (4, 8, 16), 8, "model", "run#mrl#0", kind)


def test_every_back_end_has_a_place_here_and_its_extra_is_one_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert PLACES.keys() == BACKENDS.keys()
    for name, backend in BACKENDS.items():
        assert backend.is_place(PLACES[name])
        assert backend.extra is None or backend.extra in extras


def test_a_place_is_of_one_sort_and_no_two_back_ends_share_a_kind_there() -> None:
    for place in ("index", "index.db/", "a.db", "a/b.db", "http://a:1", "https://a.db", "dbx"):
        here = [backend for backend in BACKENDS.values() if backend.is_place(place)]
        kinds = [kind for backend in here for kind in backend.kinds]
        assert kinds
        assert len({backend.is_place for backend in here}) == 1
        assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, backend in BACKENDS.items() for kind in backend.kinds if name != "milvus"]
)
def test_every_kind_is_created_found_again_and_searched(name: str, kind: str, tmp_path: Path) -> None:
    if BACKENDS[name].extra:
        pytest.importorskip({"faiss": "faiss", "milvus": "milvus_lite"}[BACKENDS[name].extra])
    place = str(tmp_path / PLACES[name])
    z = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    assert not exists(place)
    index = create_index(place, description(kind))
    index.add([Document(str(i), f"text {i}") for i in range(300)], z)
    index.close()
    assert exists(place)
    index = open_index(place)
    assert index.description == description(kind)
    nearest = rerank(index, z[:20], 1, 100).rows[:, 0]
    found = [one.id for one in index.documents(nearest)]
    index.close()
    assert np.mean([id_ == str(i) for i, id_ in enumerate(found)]) >= 0.9  # each document is nearest to itself
    with pytest.raises(UserError, match="not overwritten"):
        create_index(place, description(kind))


def test_cells_on_few_dims_are_those_of_the_nearest_centre_on_them(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    z = unit(np.random.default_rng(0).normal(size=(800, 16)).astype(np.float32))
    about = description("faiss-ivf")._replace(coarse=4)
    index = create_index(str(tmp_path / "index"), about)
    index.add([Document(str(i), f"text {i}") for i in range(len(z))], z)
    index.prepare()
    index.close()
    index = open_index(str(tmp_path / "index"))  # from the file
    assert index.description == about
    ivf = index.searchable[0]
    stage = faiss.downcast_index(ivf.quantizer)
    centres = faiss.downcast_index(stage.index).reconstruct_n(0, ivf.nlist)
    assert centres.shape == (20, 4)
    wanted = np.argmax(unit(z[:, :8])[:, :4].astype(np.float64) @ centres.T.astype(np.float64), axis=1)
    for cell in range(ivf.nlist):
        there = faiss.rev_swig_ptr(ivf.invlists.get_ids(cell), ivf.invlists.list_size(cell))
        assert set(there.tolist()) == set(np.flatnonzero(wanted == cell).tolist())
    found = rerank(index, z[:50], 1, 20).rows[:, 0]
    assert found.tolist() == list(range(50))  # each query is in the cell of its copy
    index.close()


@pytest.mark.parametrize(("kind", "most_bytes"), [("faiss-rabitq", 4 * 16), ("faiss-hnsw8", 16 + 4 * 64 + 60)])
def test_a_bit_or_a_byte_per_dim_is_of_whole_embeddings(kind: str, most_bytes: int, tmp_path: Path) -> None:
    """Documents whose prefixes are alike are told apart by the dims behind it; a graph also has 64 links per node."""
    pytest.importorskip("faiss")
    z = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    z[:, :8] = 1
    z = unit(z)
    index = create_index(str(tmp_path / "index"), description(kind))
    index.add([Document(str(i), f"text {i}") for i in range(len(z))], z)
    assert index.description.scanned == 16
    assert rerank(index, z[:100], 1, 200).rows[:, 0].tolist() == list(range(100))
    index.prepare()
    (file,) = (tmp_path / "index").glob(f"{kind}-*.index")
    assert file.stat().st_size < most_bytes * len(z)
    index.close()


@pytest.mark.parametrize(("kind", "most"), [("faiss-hnsw8", 40), ("faiss-hnsw", 800), ("faiss-rabitq", 800)])
def test_of_a_wide_view_of_bytes_a_part_is_ranked_and_finds_the_same(
    kind: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    z = unit(rng.normal(size=(2000, 16)).astype(np.float32))
    queries = unit(z[:20] + 0.3 * rng.normal(size=(20, 16)).astype(np.float32))
    index = create_index(str(tmp_path / "index"), description(kind))
    index.add([Document(str(i), f"text {i}") for i in range(len(z))], z)
    read: list[int] = []
    vectors = index.vectors

    def counted(handles: np.ndarray) -> np.ndarray:
        read.append(len(handles))
        return vectors(handles)

    monkeypatch.setattr(index, "vectors", counted)
    for query in queries:
        candidates = index.candidates(query[None], 800)[0]
        best = candidates[np.argsort(-(vectors(candidates).astype(np.float64) @ query))[:10]]
        assert rerank(index, query[None], 10, 800).rows[0].tolist() == best.tolist()
        assert read.pop() <= most
        rerank(index, query[None], 10, 800, dim=8)  # by a prefix: the order of the bytes is another, so all are ranked
        assert read.pop() == 800
    index.close()


def test_a_description_without_cells_is_as_it_was_and_wrong_cells_are_refused() -> None:
    about = description("faiss-ivf")
    text = about.to_json()
    assert "coarse" not in json.loads(text)
    assert Description.from_json(text) == about
    coarse = about._replace(coarse=4)
    assert Description.from_json(coarse.to_json()) == coarse
    for wrong in (16, 5, 0, "4", True, 4.0):
        with pytest.raises(ValueError, match="not a description of an index"):
            Description.from_json(about._replace(coarse=wrong).to_json())


@pytest.mark.parametrize("name", BACKENDS)
def test_a_kind_that_a_place_does_not_have_is_named_with_those_that_it_has(name: str, tmp_path: Path) -> None:
    place = PLACES[name] if "://" in PLACES[name] else str(tmp_path / PLACES[name])
    with pytest.raises(UserError, match="--kind=fiass-flat is unknown") as error:
        create_index(place, description("fiass-flat"))
    allowed = str(error.value).partition("allowed: ")[2].split(", ")
    assert set(BACKENDS[name].kinds) <= set(allowed)


def test_a_stored_kind_that_this_version_lacks_is_named(tmp_path: Path) -> None:
    from mrl_jax.search.index import store

    store.create(tmp_path / "index", description("usearch"))
    with pytest.raises(UserError, match="is an index of kind usearch; this version opens exact, faiss-flat"):
        open_index(str(tmp_path / "index"))


def test_importing_search_imports_no_client_of_a_back_end() -> None:
    code = (
        "import sys, mrl_jax; mrl_jax.funnel; import mrl_jax.search.__main__; "
        "print(sorted({'faiss', 'pymilvus', 'milvus_lite'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_modules_that_the_readme_imports_are_attributes_of_the_package() -> None:
    import mrl_jax
    from mrl_jax.evaluate import cascade
    from mrl_jax.search import funnel

    assert mrl_jax.cascade is cascade
    assert mrl_jax.funnel is funnel


def test_candidates_are_ranked_a_few_queries_at_a_time_with_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = unit(np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32))
    index = create_index(str(tmp_path / "index"), description("exact"))
    index.add([Document(str(i), "") for i in range(len(z))], z)
    together = rerank(index, z[:40], 5, 50)
    read: list[int] = []
    vectors = index.vectors
    monkeypatch.setattr(index, "vectors", lambda handles: read.append(len(handles)) or vectors(handles))
    monkeypatch.setattr(base, "MAX_RERANK_BYTES", 4 * 16 * 50 * 3)
    apart = rerank(index, z[:40], 5, 50)
    assert len(read) == 14
    assert max(read) <= 150
    np.testing.assert_array_equal(together.rows, apart.rows)
    np.testing.assert_allclose(together.scores, apart.scores, rtol=1e-6)
