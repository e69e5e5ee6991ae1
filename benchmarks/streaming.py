"""Data larger than memory: peak memory of training on it and of indexing it, at 1 M and 10 M rows, and how fast.

    python benchmarks/streaming.py train pairs index [--rows 1000000 10000000] [--both 1000000]
    python benchmarks/streaming.py open --rows 10000000

Training is set against the same run in memory (--both rows); the index is the default one, by a model of 128 dims.
`open` measures what opening an index takes alone, of random vectors, which no model has to make.

Rows are synthetic: a text is two phrases of 1 to 3 words out of 40,000, words drawn by Zipf's law from 30,000, the last
one telling the phrase's topic. The label is one of 20, the topic of the first phrase. Of a
pair the two texts share their first phrase; nearly all of them are distinct. Each training is a process of its
own, whose peak resident memory the kernel tells; what it takes until it is ready to train is the preparation, imports
included. Throughput is the median of the log lines after the first tenth.
Updates results/reference/benchmarks/streaming.json.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PHRASES, WORDS, TOPICS = 40_000, 30_000, 20
BLOCK = 50_000  # random vectors that are added together
OUT = Path(__file__).parent.parent / "results" / "reference" / "benchmarks" / "streaming.json"
SETTINGS = [
    *("name=streaming", "width=128", "nesting_dims=[8,32,128]", "trainer.batch_size=256"),
    *("trainer.steps=1000", "trainer.evaluations=2", "trainer.checkpoint_seconds=20", "optimizer.learning_rate=3e-3"),
    *("evaluation.neighbours=false", "evaluation.refit=null", "evaluation.interpolated=false"),
    "evaluation.baseline=none",
]
OF = {  # what is trained on: settings, the measure that is shown of it, and what a row is called
    "train": (["data=files", "arms=[mrl_e]"], "linear_top1", "rows"),
    "pairs": (["data=pairs", "encoder=bag", "arms=[mrl]", "loss.name=info_nce"], "ndcg@10", "pairs"),
}


def write(path: Path, rows: int, seed: int, kind: str) -> Path:
    """`rows` lines of JSON: labelled texts to `train` on, `pairs`, or the documents of an `index`."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    words = [f"{'abcdefghijklmnopqrstuvwxyz'[i % 26]}{i:x}" for i in range(WORDS)]
    share = 1 / np.arange(1, WORDS + 1)
    drawn = rng.choice(WORDS, (PHRASES, 2), p=share / share.sum())
    phrases = [
        " ".join([*(words[w] for w in row[: i % 3]), f"topic{i % TOPICS}x{i % 700}"]) for i, row in enumerate(drawn)
    ]
    rng = np.random.default_rng(seed)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for start in range(0, rows, 100_000):
            drawn = rng.integers(0, PHRASES, (min(100_000, rows - start), 3 if kind == "pairs" else 2)).tolist()
            for row, (a, b, *others) in enumerate(drawn, start):
                text = f"{phrases[a]} {phrases[b]}"
                match kind:
                    case "pairs":
                        line = f'"anchor": "{text}", "positive": "{phrases[a]} {phrases[others[0]]}"'
                    case "index":
                        line = f'"text": "{text}", "_id": "{row}"'
                    case _:
                        line = f'"text": "{text}", "label": "topic {a % TOPICS}"'
                file.write(f"{{{line}}}\n")
    partial.rename(path)
    return path


def train(folder: Path, rows: int, run: str, streamed: bool, kind: str = "train") -> dict[str, float]:
    """One training in a process of its own: what it took, and what it came to."""
    settings, metric, _ = OF[kind]
    path = write(folder / f"{kind}-{rows}.jsonl", rows, 1, kind)
    small = {
        name: write(folder / f"{kind}-{name}.jsonl", 10_000, seed, kind)
        for name, seed in (("validation", 2), ("test", 3))
    }
    files = [f"data.train={path}", *(f"data.{name}={place}" for name, place in small.items())]
    place = [f"data.cache_dir={folder / 'cache'}", f"results_dir={folder / 'results'}", f"run={run}"]
    place += [f"data.streaming={str(streamed).lower()}"]
    command = [sys.executable, "-m", "mrl_jax.train", *settings, *SETTINGS, *files, *place]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    prepared, said = (0.0, 0.0), ""
    for said in process.stderr:
        if " to train, " in said:
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            prepared = time.monotonic() - began, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    peak = ended(process, said)
    directory = folder / "results" / "streaming" / run
    log = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["examples_per_second"] for line in log if line["split"] == "train"]
    found = [line.split(",") for line in (directory / "evaluation.csv").read_text().splitlines()]
    measured = next(float(row[-1]) for row in found if row[3:6] == ["128", "test", metric])
    return {
        "rows": rows,
        "source_gb": round(path.stat().st_size / 1e9, 3),
        "preparation_seconds": round(prepared[0], 1),
        "preparation_cpu_seconds": round(prepared[1], 1),
        "peak_rss_gb": peak,
        "examples_per_second": float(np.median(speeds[len(speeds) // 10 :])),
        f"test_{metric}": measured,
    }


def ended(process: subprocess.Popen[str], said: str) -> float:
    """The peak resident memory in GB of a process that has nothing more to say."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args} ended with status {process.returncode}: {said}")
    return round(usage.ru_maxrss * 1024 / 1e9, 3)


def build(folder: Path, rows: int, run: Path, place: Path) -> dict[str, float]:
    """One index built in a process of its own."""
    corpus = write(folder / f"corpus-{rows}.jsonl", rows, 4, "index")
    command = [sys.executable, "-m", "mrl_jax.search", "build", str(run), str(corpus), "--index", str(place)]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    peak = ended(process, process.stderr.read())
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in place.iterdir())
    return {
        "rows": rows,
        "index_gb": round(size / 1e9, 3),
        "peak_rss_gb": peak,
        "documents_per_second": round(rows / seconds),
    }


def build_of_vectors(rows: int, place: Path) -> None:
    """An index of so many random vectors, each the embedding of a short text."""
    from mrl_jax.search.index import Description, Document, create_index

    rng = np.random.default_rng(0)
    with contextlib.closing(create_index(str(place), Description(128, (8, 32, 128), 32, "", "##0"))) as index:
        for start in range(0, rows, BLOCK):
            block = range(start, min(start + BLOCK, rows))
            index.add(
                [Document(str(row), f"text {row}") for row in block], rng.standard_normal((len(block), 128), "f4")
            )


# What a command does before it has a query: open the index, and have its prefixes laid out.
OPEN = """
import resource, sys, time
from mrl_jax.search.index import open_index
began = time.monotonic()
index = open_index(sys.argv[1])
documents = len(index)
index.prefixes.chunks.block_until_ready()
print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
"""


def opening(place: Path) -> dict[str, float]:
    """Seconds, without imports, and memory of opening an index: the first time after a build, and then."""
    for path in place.glob("*.layout"):
        path.unlink()
    found = {}
    for name in ("first", "second", "third"):
        said = subprocess.run([sys.executable, "-c", OPEN, str(place)], capture_output=True, text=True, check=True)
        seconds, peak = map(float, said.stdout.split())
        found |= {f"{name}_opening_seconds": round(seconds, 2), f"{name}_opening_peak_rss_gb": round(peak, 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("train", "pairs", "index", "open"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--both", type=int, default=1_000_000, help="rows that are trained on in memory as well")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/streaming"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%H%M%S")
    content = json.loads(options.out.read_text()) if options.out.exists() else {}

    def note(name: str, found: dict[str, float]) -> None:
        print(f"{name}: {found}", flush=True)
        content[name] = found
        options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    content |= {"cores": os.cpu_count(), "settings": SETTINGS, "settings of": {kind: of[0] for kind, of in OF.items()}}
    for kind, (_, _, what) in OF.items():
        if kind not in options.what:
            continue
        for rows in options.rows:
            note(f"{rows:,} {what} streamed", train(options.folder, rows, f"{stamp}-{kind}-{rows}", True, kind))
        memory = train(options.folder, options.both, f"{stamp}-{kind}-memory", False, kind)
        again = train(options.folder, options.both, f"{stamp}-{kind}-again", True, kind)
        note(f"{options.both:,} {what} in memory", memory)
        note(f"{options.both:,} {what} streamed, prepared before", again)
        ratios = {
            "examples/s streamed ÷ in memory": again["examples_per_second"] / memory["examples_per_second"],
            "peak RSS streamed ÷ in memory": again["peak_rss_gb"] / memory["peak_rss_gb"],
        }
        note(
            f"ratios of {what}",
            {name: round(ratio, 3) for name, ratio in ratios.items()},
        )
    if "index" in options.what:
        train(options.folder, 100_000, f"{stamp}-model", streamed=False)
        run = options.folder / "results" / "streaming" / f"{stamp}-model"
        for rows in options.rows:
            place = options.folder / f"{stamp}-{rows}.index"
            note(f"{rows:,} documents indexed", build(options.folder, rows, run, place) | opening(place))
    for rows in options.rows if "open" in options.what else ():
        place = options.folder / f"{stamp}-{rows}-vectors.index"
        build_of_vectors(rows, place)
        note(f"{rows:,} documents opened", opening(place))


if __name__ == "__main__":
    main()
