"""Search among many embeddings: ours and FAISS side by side, in one process, on the same vectors and queries.

Documents are synthesised from real embeddings: texts of a run's data are cut into windows of a few words and embedded,
and each new vector lies between one of them and one of its ten nearest neighbours, with a little of the difference to a
third one added. So they have the spectrum and the clusters of real ones, but no texts. Queries are synthesised in the
same way from other draws.

    python benchmarks/retrieval.py --run results/newsgroups/study --arm mrl          # 200,000 × 256, made here
    python benchmarks/retrieval.py --run … --count 1000000 --threads 2 --json FILE
    python benchmarks/retrieval.py --run … --count 1000000 --disk                    # an index in a folder: peak memory
    python benchmarks/retrieval.py --run results/wordnet/main --texts 200000 --real  # texts as they are

Needs the extra `faiss`. Every method is timed in turn, after a call that warms it up; the table has the least of
--rounds, for a batch of 256 queries and for one query alone.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K = 10
QUERY_COUNT = 256
SINGLE_QUERIES = 20  # queries that are timed one by one
SEED = 0
FLAT = ("FAISS flat, threshold 20", "FAISS flat, default")  # distance_compute_blas_threshold


def real(run: str, arm: str | None, windows: int, texts: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Embeddings [≤ texts, D] of windows of words of a run's training and test texts, and the nesting dims."""
    import dataclasses

    import mrl_jax
    from mrl_jax import config, data, runs

    settings = config.from_yaml(runs.find(run) / "config.yaml")
    dataset = data.load(dataclasses.replace(settings.data, limit=None))
    cut = []
    for text in (*dataset.train.inputs, *dataset.test.inputs):
        words = str(text).split()
        cut += [" ".join(words[i : i + windows]) for i in range(0, max(1, len(words) - windows // 2), windows)]
    chosen = [cut[i] for i in np.random.default_rng(SEED).permutation(len(cut))[:texts]]
    chosen.sort(key=len)
    model = mrl_jax.load(run, arm)
    parts = [model.encode(chosen[i : i + 1024], batch_size=64) for i in range(0, len(chosen), 1024)]
    return np.concatenate(parts), tuple(sorted({*model.dims, model.program.width}))


def whole(run: str, arm: str | None, texts: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Embeddings [≤ texts, D] of a run's training texts, of QUERY_COUNT test texts, and the nesting dims."""
    import dataclasses

    import mrl_jax
    from mrl_jax import config, data, runs

    settings = config.from_yaml(runs.find(run) / "config.yaml")
    dataset = data.load(dataclasses.replace(settings.data, limit=None))
    model = mrl_jax.load(run, arm)
    rng = np.random.default_rng(SEED)
    splits = []
    for inputs, most in (
        ([*dataset.train.inputs, *dataset.validation.inputs], texts),
        (dataset.test.inputs, QUERY_COUNT),
    ):
        chosen = [str(inputs[i]) for i in rng.permutation(len(inputs))[:most]]
        parts = [model.encode(chosen[i : i + 1024], batch_size=64) for i in range(0, len(chosen), 1024)]
        splits.append(np.concatenate(parts))
    return splits[0], splits[1], tuple(sorted({*model.dims, model.program.width}))


def synthesise(base: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` unit vectors float32 around the rows of `base`."""
    import faiss

    rng = np.random.default_rng((SEED, seed))
    flat = faiss.IndexFlatIP(base.shape[1])
    flat.add(base)
    neighbours = flat.search(base, 11)[1][:, 1:]
    vectors = np.empty((count, base.shape[1]), np.float32)
    for start in range(0, count, 65536):
        n = min(65536, count - start)
        i, j = rng.integers(0, len(base), (2, n))
        t = 0.5 * rng.random((n, 1), np.float32)
        near = base[neighbours[i, rng.integers(0, 10, n)]]
        z = base[i] + t * (near - base[i]) + 0.3 * t * (base[j] - base[i])
        vectors[start : start + n] = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-9)
    return vectors


def unit(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9), np.float32)


Method = Callable[[np.ndarray], np.ndarray]  # queries [Q, D] → rows [Q, K]


def methods(x: np.ndarray, dims: tuple[int, ...], threads: int, prefix: int) -> dict[str, Method]:
    """Name → search. FAISS runs with the settings that its documentation and this machine suggest."""
    import faiss
    import jax.numpy as jnp

    from mrl_jax.search import funnel

    faiss.omp_set_num_threads(threads)
    width, count = x.shape[1], len(x)
    half = funnel.lay_out(x, dims)
    whole = funnel.lay_out(x, dims, jnp.float32)
    turned = funnel.lay_out(x, dims, rotate=True)
    searches: dict[str, Method] = {
        "exact": lambda q: funnel.exact(half, q, K)[0].rows,
        "exact, float32": lambda q: funnel.exact(whole, q, K)[0].rows,
    }
    for start in dims:
        if prefix // 2 <= start < width:
            searches[f"exact funnel from {start}"] = lambda q, s=start: funnel.exact(half, q, K, s)[0].rows
            searches[f"exact funnel, rotated, from {start}"] = lambda q, s=start: funnel.exact(turned, q, K, s)[0].rows
    for size in (50, 100, 200):
        searches[f"shortlist {prefix}:{size}"] = lambda q, s=size: funnel.funnel(half, q, K, [(prefix, s)]).rows
    searches[f"shortlist {prefix}:100, float32"] = lambda q: funnel.funnel(whole, q, K, [(prefix, 100)]).rows
    searches[f"principal directions {prefix}:100"] = lambda q: funnel.funnel(turned, q, K, [(prefix, 100)]).rows
    steps = [(m, n) for m, n in ((prefix // 2, 400), (prefix, 200), (2 * prefix, 50)) if m in dims]
    searches["funnel " + " → ".join(f"{m}:{n}" for m, n in steps)] = lambda q: funnel.funnel(half, q, K, steps).rows

    flat, short = faiss.IndexFlatIP(width), faiss.IndexFlatIP(prefix)
    flat.add(x)
    short.add(unit(x[:, :prefix]))

    def with_threshold(value: int, search: Method) -> Method:
        def call(q: np.ndarray) -> np.ndarray:
            faiss.cvar.distance_compute_blas_threshold = value
            return search(q)

        return call

    def reranked(index: Any, size: int, dim: int) -> Method:
        def call(q: np.ndarray) -> np.ndarray:
            rows = index.search(unit(q[:, :dim]), size)[1]
            scores = np.einsum("qcd,qd->qc", x[rows], q)
            return np.take_along_axis(rows, np.argsort(-scores, axis=1)[:, :K], axis=1)

        return call

    default = faiss.cvar.distance_compute_blas_threshold
    searches[FLAT[0]] = with_threshold(20, lambda q: flat.search(q, K)[1])
    searches[FLAT[1]] = with_threshold(default, lambda q: flat.search(q, K)[1])
    searches[f"FAISS flat {prefix}:100"] = with_threshold(20, reranked(short, 100, prefix))
    graph = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    started = time.perf_counter()
    graph.add(x)
    print(f"HNSW built in {time.perf_counter() - started:.0f} s", file=sys.stderr)

    def walked(ef: int) -> Method:
        def call(q: np.ndarray) -> np.ndarray:
            graph.hnsw.efSearch = ef
            return graph.search(q, K)[1]

        return call

    for ef in (64, 128):
        searches[f"FAISS HNSW32, ef {ef}"] = walked(ef)
    cells = faiss.index_factory(width, f"IVF{round(4 * count**0.5)},Flat", faiss.METRIC_INNER_PRODUCT)
    cells.train(x[:: max(1, count // 65536)])
    cells.add(x)
    cells.nprobe = max(8, cells.nlist // 25)
    searches[f"FAISS IVF, {cells.nprobe} of {cells.nlist} cells"] = lambda q: cells.search(q, K)[1]
    bits = faiss.IndexBinaryFlat(width // 8 * 8)
    bits.add(np.packbits(x[:, : width // 8 * 8] > 0, axis=1))

    def hashed(q: np.ndarray) -> np.ndarray:
        rows = bits.search(np.packbits(q[:, : width // 8 * 8] > 0, axis=1), 200)[1]
        scores = np.einsum("qcd,qd->qc", x[rows], q)
        return np.take_along_axis(rows, np.argsort(-scores, axis=1)[:, :K], axis=1)

    searches["FAISS 1 bit:200"] = hashed
    return searches


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from mrl_jax.search.plan import ndcg, recall

    if options.real:
        x, q, dims = whole(options.run, options.arm, options.texts)
    else:
        base, dims = real(options.run, options.arm, options.windows, options.texts)
        x, q = synthesise(base, options.count, 0), synthesise(base, QUERY_COUNT, 1)
    prefix = options.prefix or min(dims, key=lambda m: abs(m - 64))
    searches = methods(x, dims, options.threads, prefix)
    truth = np.concatenate([np.argsort(-(x @ one), kind="stable")[None, :K] for one in q])
    times: dict[str, dict[str, float]] = {}
    quality = {}
    for name, search in searches.items():
        rows = search(q)
        quality[name] = {"recall": float(recall(rows, truth).mean()), "ndcg": float(ndcg(rows, truth).mean())}
        search(q[:1])
        times[name] = {"batch": np.inf, "alone": np.inf}
    for _ in range(options.rounds):
        for name, search in searches.items():
            started = time.perf_counter()
            search(q)
            middle = time.perf_counter()
            for i in range(SINGLE_QUERIES):
                search(q[i : i + 1])
            ended = time.perf_counter()
            best = times[name]
            best["batch"] = min(best["batch"], 1000 * (middle - started))
            best["alone"] = min(best["alone"], 1000 * (ended - middle) / SINGLE_QUERIES)
    print(f"{len(x):,} × {x.shape[1]}, dims {dims}, {options.threads} thread(s); ms, and ÷ the better FAISS flat")
    print(f"{'':>36}{'recall@10':>10}{'nDCG@10':>9}{f'batch {QUERY_COUNT}':>12}{'÷':>6}{'alone':>9}{'÷':>6}")
    # FAISS flat at its better setting for each batch size.
    flat = [measured for name, measured in times.items() if name in FLAT]
    against = {key: min(measured[key] for measured in flat) for key in ("batch", "alone")}
    for name, measured in times.items():
        print(
            f"{name:>36}{quality[name]['recall']:>10.4f}{quality[name]['ndcg']:>9.4f}{measured['batch']:>12.1f}"
            f"{measured['batch'] / against['batch']:>6.2f}{measured['alone']:>9.2f}"
            f"{measured['alone'] / against['alone']:>6.2f}"
        )
    return {
        "vectors": {"run": options.run, "arm": options.arm, "real": options.real}, "count": len(x), "width": x.shape[1],
        "dims": dims,
        "threads": options.threads, "rounds": options.rounds, "platform": platform.platform(),
        "methods": {name: {**quality[name], **times[name]} for name in times},
    }  # fmt: skip


def on_disk(options: argparse.Namespace) -> dict[str, Any]:
    """Build an index folder, search it in a fresh process, and measure how much memory that takes."""
    from mrl_jax.search.index import Description, Document, exact
    from mrl_jax.search.plan import recall

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        base, dims = real(options.run, options.arm, options.windows, options.texts)
        prefix = options.prefix or min(dims, key=lambda m: abs(m - 64))
        index = exact.create(Path(folder) / "index", Description(base.shape[1], dims, prefix, "", "##0"))
        for start in range(0, options.count, 50_000):
            n = min(50_000, options.count - start)
            some = [Document(str(start + i), f"document {start + i}") for i in range(n)]
            index.add(some, synthesise(base, n, 10 + start))
        index.close()
        np.save(Path(folder) / "queries.npy", synthesise(base, QUERY_COUNT, 1))
        command = [sys.executable, __file__, "--run", "", "--searched", folder, "--way"]
        ways = {}
        for way in ("exact", "shortlist"):  # each in a fresh process
            output = subprocess.run([*command, way], capture_output=True, text=True, check=True).stdout
            ways[way] = json.loads(output)
        size = (Path(folder) / "index" / "vectors.f32").stat().st_size
        rows = {way: np.array(of.pop("rows")) for way, of in ways.items()}
    ways["shortlist"]["recall"] = float(recall(rows["shortlist"], rows["exact"]).mean())
    print(f"{options.count:,} × {base.shape[1]} on disk ({size / 1e9:.2f} GB), {prefix} dims in memory:")
    for way, of in ways.items():
        print(
            f"  {way}: opened, checked and laid out in {of['laid_out']:.1f} s, {of['seconds']:.2f} s for {QUERY_COUNT} "
            f"queries, peak memory {of['peak'] / 1e6:.0f} MB, recall@10 {of.get('recall', 1):.4f}"
        )
    return {"documents": options.count, "width": base.shape[1], "bytes": size, "prefix": prefix, "ways": ways}


def searched(folder: Path, way: str) -> None:
    """The fresh process: open and search; prints JSON."""
    from mrl_jax.search.index import exact

    q = np.load(folder / "queries.npy")
    started = time.perf_counter()
    index = exact.open_(folder / "index")
    stages = None if way == "exact" else [(index.description.prefix, 100)]
    rows = index.search(q, K, stages).rows
    laid_out = time.perf_counter() - started
    started = time.perf_counter()
    index.search(q, K, stages)
    seconds = time.perf_counter() - started
    # Of this program alone: getrusage still counts the parent that it was forked from.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({"laid_out": laid_out, "seconds": seconds, "peak": peak, "rows": rows.tolist()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run on texts")
    parser.add_argument("--arm")
    parser.add_argument("--windows", type=int, default=12, help="words per text")
    parser.add_argument("--texts", type=int, default=16_000, help="real embeddings to start from")
    parser.add_argument("--count", type=int, default=200_000, help="documents")
    parser.add_argument("--prefix", type=int, help="dims of shortlists; the nesting dim nearest to 64 by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--real", action="store_true", help="the run's training texts, searched for its test texts")
    parser.add_argument("--disk", action="store_true", help="an index in a folder, and the memory that searching takes")
    parser.add_argument("--folder", type=Path, help="where that folder is made")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--searched", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.searched:
        searched(options.searched, options.way)
        return
    # The numbers of threads and cores are settled before JAX starts.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: options.threads])
    figures = on_disk(options) if options.disk else measure(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
