"""Time and memory of an evaluation on a large collection at many dims, from embeddings that are stored.

    python benchmarks/zero_shot.py [--model wordllama] [--documents 100000] [--json FILE]

The collection is the reverse dictionary of WordNet: its synsets as documents, its test definitions as queries. The
command is called twice: it embeds the first time, and what is measured is the second. All arms are evaluated: prefixes,
8 bits, 1 bit, principal directions, random projection and BM25.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from fresh import machine, measured

from mrl_jax import data, zero_shot
from mrl_jax.data import Ranking

DIMS = "8,16,32,64,96,128,192,256"


def write_collection(folder: Path, count: int) -> tuple[int, int]:
    """The collection as a BEIR folder: its first documents, and the queries whose answers are among them."""
    test = data.load(data.DataConfig(source="wordnet", task="pairs")).test
    assert isinstance(test, Ranking)
    answers = [(int(query), int(document)) for query, document, gain in test.judgments if gain > 0 and document < count]
    texts = {"corpus": test.documents[:count], "queries": test.queries}
    (folder / "qrels").mkdir(parents=True)
    for name, rows in texts.items():
        lines = (json.dumps({"_id": f"{name[0]}{i}", "text": text}) + "\n" for i, text in enumerate(rows))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    judged = "".join(f"q{query}\tc{document}\t1\n" for query, document in answers)
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    return len(texts["corpus"]), len({query for query, _ in answers})


def worker(folder: str, model: str, dims: str) -> None:
    """One call of the command, and what it took."""
    words = [model, "--on", f"{folder}/wordnet", "--dims", dims, "--out", f"{folder}/out"]
    stdout, sys.stdout = sys.stdout, sys.stderr
    status = zero_shot.main([*words, "--cache-dir", f"{folder}/cache"])
    sys.stdout = stdout
    assert status == 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(json.dumps({"cpu_seconds": time.process_time(), "peak_gib": peak}))


def timed(*words: str) -> dict[str, float]:
    """What a worker says, and how long its process took."""
    started = time.monotonic()
    return {**measured(*words), "seconds": time.monotonic() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wordllama")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--dims", default=DIMS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        documents, queries = write_collection(Path(folder) / "wordnet", options.documents)
        first, again = (timed(folder, options.model, options.dims) for _ in range(2))
    record = machine(model=options.model, dims=options.dims, documents=documents, queries=queries)
    record |= {"load": os.getloadavg()[0], "embedding": first, "stored": again}
    print(json.dumps(record, indent=1))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
