"""The time of comparing queries with 100,000 prefixes, and with as many sparse codes of the same bytes.

    python experiments/csr/speed.py [--json FILE]

One thread; random data, as only sizes count. A prefix of m dims is 4 m bytes, its code 2 m / 3 active of 512 features.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from mrl_jax.evaluate.sparse import active_at

DOCUMENTS, FEATURES = 100_000, 512
DIMS = (4, 8, 16, 32, 64, 128)
QUERIES = (1, 256)
ROUNDS = 5


def codes(n: int, active: int, rng: np.random.Generator) -> csr_array:
    """n rows with so many numbers at random places."""
    places = np.sort(rng.random((n, FEATURES), dtype=np.float32).argsort(axis=1)[:, :active], axis=1)
    starts = np.arange(0, n * active + 1, active)
    return csr_array((rng.random(n * active, dtype=np.float32), places.ravel(), starts), (n, FEATURES))


def seconds(search: Callable[[], object]) -> float:
    search()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        search()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    for dim in DIMS:
        prefixes = rng.random((DOCUMENTS, dim), dtype=np.float32)
        documents = codes(DOCUMENTS, active_at(dim), rng)
        by_feature = documents.T.tocsr()  # inverted lists
        for count in QUERIES:
            dense = rng.random((count, dim), dtype=np.float32)
            sparse = codes(count, active_at(dim), rng)
            with threadpool_limits(1):
                of_prefixes = seconds(lambda dense=dense, prefixes=prefixes: dense @ prefixes.T)
                of_codes = seconds(lambda sparse=sparse, by_feature=by_feature: (sparse @ by_feature).todense())
            rows.append({"dim": dim, "active": active_at(dim), "queries": count,
                         "prefix ms": 1e3 * of_prefixes, "codes ms": 1e3 * of_codes})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
