"""What `python -m mrl_jax.evaluate` takes on a collection of 100,000 documents.

    python benchmarks/evaluate.py [--documents N] [--queries N] [--json FILE]

The documents are synsets of WordNet and the queries definitions, written as a folder in the layout of BEIR. The model
is `wordllama`, 256 dims, evaluated at 8 of them with every arm. The first call makes the embeddings, the second finds
them in the cache folder. Seconds by the clock and of processor time, and the peak of resident memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fresh import machine

from mrl_jax.data import DataConfig, PairDataset, load

DIMS = (8, 16, 32, 64, 96, 128, 192, 256)


def write(folder: Path, documents: int, queries: int) -> tuple[int, int]:
    """Write the collection; returns how many documents and queries it has."""
    dataset = load(DataConfig("wordnet", task="pairs"))
    assert isinstance(dataset, PairDataset)
    test = dataset.test
    judged = [(int(q), int(d), int(gain)) for q, d, gain in test.judgments if q < queries]
    answers = dict.fromkeys(d for _, d, _ in judged)
    chosen = [*answers, *(d for d in range(len(test.documents)) if d not in answers)][:documents]
    asked = sorted({q for q, _, _ in judged})
    lines = {
        "corpus.jsonl": [json.dumps({"_id": f"d{d}", "title": "", "text": test.documents[d]}) for d in chosen],
        "queries.jsonl": [json.dumps({"_id": f"q{q}", "text": test.queries[q]}) for q in asked],
        "qrels/test.tsv": ["query-id\tcorpus-id\tscore", *(f"q{q}\td{d}\t{gain}" for q, d, gain in judged)],
    }
    (folder / "qrels").mkdir(parents=True)
    for name, rows in lines.items():
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return len(chosen), len(asked)


def call(folder: Path, out: str) -> dict[str, float]:
    """Seconds and bytes of one call."""
    command = [sys.executable, "-m", "mrl_jax.evaluate", "wordllama", "--on", folder / "wordnet"]
    command += ["--dims", ",".join(map(str, DIMS)), "--out", folder / out, "--cache-dir", folder / "cache"]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command ended with status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000, metavar="N")
    parser.add_argument("--queries", type=int, default=2_000, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents, queries = write(folder / "wordnet", options.documents, options.queries)
        found = machine(documents=documents, queries=queries, dims=DIMS, load=os.getloadavg()[0])
        found |= {"first": call(folder, "first"), "from cache": call(folder, "second")}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
