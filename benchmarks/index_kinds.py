"""Every kind of index in a folder on the same documents, and how near `--kind auto` comes to the fastest of them.

    python benchmarks/index_kinds.py [--documents N] [--recall .99] [--together 1 256] [--json FILE]
    python benchmarks/index_kinds.py --documents 1000000 --model minilm --embedded 16000 --peer built

Documents are synsets of WordNet and queries definitions, embedded by `wordllama`: 256 dims, of which 64 are the prefix.
Beyond --embedded, documents are synthesised around the first 16,000 as in retrieval.py. `auto` chooses by --held-out
queries; on --queries others each kind is measured: bytes per document of what is searched first, recall@10 of 100
candidates, and the time of the shortest shortlist that keeps the asked recall there, which is the best in hindsight.
--peer also times HNSW of FAISS on whole embeddings, in memory, with the smallest view that keeps the recall: on a graph
of its own or, with `--peer links`, on that of faiss-hnsw8, which saves building one. Needs the extra `faiss`.
"""

import argparse
import bisect
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import retrieval

from mrl_jax.data import DataConfig, PairDataset, load
from mrl_jax.model.pretrained import pretrained
from mrl_jax.search import choose, plan, timing
from mrl_jax.search.dispatch import search_index
from mrl_jax.search.index import Description, Document, Index, by_kind, create_index, exists, open_as, open_index
from mrl_jax.search.index.faiss import HNSW_LINKS, HNSW_NODES, FaissIndex
from mrl_jax.search.truth import best_of_blocks

K = 10
SHORTER = (16, 32, 64, 128)  # dims of prefixes
PREFIX, COARSE = 64, 16
CANDIDATES = 100
BLOCK = 50_000
BASE = 16_000  # documents that others are synthesised around
VIEWS = (
    32,
    64,
    128,
    256,
    320,
    384,
    448,
    512,
    640,
    768,
    896,
    1024,
    1280,
    1536,
    2048,
)  # nodes that the peer keeps in view


def embedded(name: str, documents: int, real: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of so many documents, of which `real` are of texts, and queries, of unit length."""
    data = load(DataConfig("wordnet", task="pairs"))
    assert isinstance(data, PairDataset)
    model = pretrained(name)
    texts = list(data.test.documents)[: min(documents, real)]
    asked = [*data.test.queries, *(data.train.table[i] for i in np.unique(data.train.columns[:, 0]))]
    drawn = np.random.default_rng(0).permutation(queries)  # so that no split is of train's definitions alone
    x, q = model.encode(texts), model.encode([str(asked[i]) for i in drawn])
    more = documents - len(x)
    return (np.concatenate([x, retrieval.synthesise(x[:BASE], more, 10)]) if more else x), q


def ways(kinds: list[str]) -> dict[str, tuple[str, int | None]]:
    """Name → kind and dims of the cells."""
    coarse = {f"faiss-ivf, cells on {COARSE} dims": ("faiss-ivf", COARSE)} if "faiss-ivf" in kinds else {}
    return {kind: (kind, None) for kind in kinds} | coarse


def measured(
    index: Index, queries: np.ndarray, truth: np.ndarray, target: float, together: list[int]
) -> dict[str, Any]:
    """What one kind costs and finds; of `exact` also without a shortlist."""
    kind, dim = index.description.kind, index.description.scanned
    started = time.perf_counter()
    size = timing.prepare(index)
    found: dict[str, Any] = {"built in s": time.perf_counter() - started, "bytes per document": size / len(index)}

    def recall(size: int) -> float:
        return float(plan.recall(search_index(index, queries, K, [(dim, size)]).rows, truth).mean())

    found["recall"] = {CANDIDATES: recall(CANDIDATES)}
    sizes = choose.shortlist_sizes(K, len(index))
    place = bisect.bisect_left(sizes, target, key=recall)  # more candidates never hold less
    kept = sizes[place] if place < len(sizes) else None
    found["shortlist"] = kept

    def seconds(stages: list[tuple[int, int]] | None, count: int) -> float:
        return timing.seconds(lambda z, one: search_index(index, z, K, one), queries, stages, count)

    found["ms"] = {n: None if kept is None else 1e3 * seconds([(dim, kept)], n) for n in together}
    if kind == "exact":
        found["ms, no shortlist"] = {n: 1e3 * seconds(None, n) for n in together}
    return found


def peer(
    x: np.ndarray,
    queries: np.ndarray,
    truth: np.ndarray,
    target: float,
    together: list[int],
    links_of: FaissIndex | None,
) -> dict[str, Any]:
    """HNSW of FAISS on whole embeddings: what it costs and finds with the smallest view that keeps the recall.

    With `links_of`, the graph is that of another index, and only the vectors are other ones."""
    import faiss

    started, rows = time.perf_counter(), np.arange(len(x))
    graph = faiss.IndexHNSWFlat(x.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 2 * HNSW_NODES
    if links_of is None:
        graph.add(x)
    else:
        other, distinct = links_of.searchable
        rows = distinct.rows
        graph.storage.add(np.ascontiguousarray(x[rows]))
        graph.ntotal, graph.hnsw = other.ntotal, faiss.downcast_index(other).hnsw
    built = time.perf_counter() - started
    found: dict[str, Any] = {"built in s": built, "bytes per document": len(faiss.serialize_index(graph)) / len(x)}
    for view in VIEWS:
        graph.hnsw.efSearch = view
        found |= {"view": view, "recall": float(plan.recall(rows[graph.search(queries, K)[1]], truth).mean())}
        if found["recall"] >= target:
            break

    def search(z: np.ndarray, stages: Any) -> Any:
        return graph.search(z, K)

    return found | {"ms": {n: 1e3 * timing.seconds(search, queries, None, n) for n in together}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000, metavar="N")
    parser.add_argument("--held-out", type=int, default=4_000, metavar="N", help="queries to choose by")
    parser.add_argument("--queries", type=int, default=1_500, metavar="N", help="queries to measure with")
    parser.add_argument("--model", default="wordllama", help="a model as it is: wordllama, minilm or a folder")
    parser.add_argument("--embedded", type=int, default=114_050, metavar="N", help="documents that are texts")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="KIND", help="kinds that take long to build")
    parser.add_argument("--place", type=Path, metavar="DIR", help="keep the index here, and take one that is here")
    parser.add_argument("--peer", choices=["built", "links"], help="also HNSW of FAISS on whole embeddings")
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    x, q = embedded(options.model, options.documents, options.embedded, options.queries + options.held_out)
    test, held_out = np.split(q, [options.queries])
    kinds, auto = {}, {}
    with tempfile.TemporaryDirectory() as name:
        place = str(options.place or Path(name) / "index")
        about = Description(x.shape[1], (*SHORTER, x.shape[1]), PREFIX, "", "##0")
        is_there = exists(place)
        with contextlib.closing(open_index(place) if is_there else create_index(place, about)) as index:
            for start in range(0, 0 if is_there else len(x), BLOCK):
                some = x[start : start + BLOCK]
                index.add([Document(str(start + i), "") for i in range(len(some))], some)
            truth = best_of_blocks(index.blocks(), test, K).rows
        tried = [kind for kind in by_kind(place) if kind not in options.leave_out]
        for name, (kind, coarse) in ways(tried).items():
            with contextlib.closing(open_as(place, kind)) as index:
                index.description = index.description._replace(coarse=coarse)
                for path in Path(place).glob(f"{kind}-*.index") if coarse or kind == "faiss-ivf" else ():
                    path.unlink()  # that of other cells
                kinds[name] = measured(index, test, truth, options.recall, options.together)
            print(f"{name}: {json.dumps(kinds[name])}", flush=True)
        of_peer: dict[str, Any] = {}
        if options.peer:
            with contextlib.closing(open_as(place, "faiss-hnsw8")) as index:
                links_of = index if options.peer == "links" else None
                of_peer = peer(x, test, truth, options.recall, options.together, links_of)
            print(f"peer: {json.dumps(of_peer)}", flush=True)
        # `choose` keeps what the chosen kind needs; the other files are put back, so that no kind is built twice.
        built = {path: path.with_suffix(".built") for path in Path(place).glob("*.index")}
        for path, kept in built.items():
            kept.hardlink_to(path)
        for together in options.together:
            for path, kept in built.items():
                if not path.exists():
                    path.hardlink_to(kept)
            with contextlib.closing(open_index(place, write=True)) as index:
                chosen = choose.choose(index, tried, held_out, K, options.recall, together=together)
            times = {name: one["ms"][together] for name, one in kinds.items()}
            times["exact, no shortlist"] = kinds["exact"]["ms, no shortlist"][together]
            best = min((ms, name) for name, ms in times.items() if ms is not None)
            auto[together] = {"best": best[1], "ms of the best": best[0], "chosen": str(chosen)}
            if chosen is not None:
                with contextlib.closing(open_as(place, chosen.kind)) as index:
                    stages = chosen.stages

                    def search(z: np.ndarray, stages: Any, index: Index = index) -> Any:
                        return search_index(index, z, K, stages)

                    rows = search(test, stages).rows
                    auto[together] |= {
                        "recall of the chosen": float(plan.recall(rows, truth).mean()),
                        "ms of the chosen": 1e3 * timing.seconds(search, test, stages, together),
                    }
                    auto[together]["ratio"] = auto[together]["ms of the chosen"] / best[0]
            print(f"auto, {together} together: {json.dumps(auto[together])}", flush=True)
    found = fresh.machine(documents=len(x), width=x.shape[1], prefix=PREFIX, target=options.recall, model=options.model)
    found |= {"queries": len(test), "held out": len(held_out)}
    found |= {"kinds": kinds, "auto": auto}
    if options.peer:
        found["FAISS HNSW on whole embeddings"] = of_peer
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
