"""Training on data larger than memory: peak memory at 1 M and 10 M rows, and how fast, against the same run in memory.

    python benchmarks/streaming.py [--rows 1000000 10000000] [--both 1000000] [--folder /tmp/streaming]

Rows are synthetic: a text is two phrases of 1 to 3 words out of 40,000, words drawn by Zipf's law from 30,000, the last
one telling the phrase's topic. The label is one of 20, the topic of the first phrase. Each training is a process of its
own, whose peak resident memory the kernel tells; what it takes until it is ready to train is the preparation, imports
included. Throughput is the median of the log lines after the first tenth.
Writes results/reference/benchmarks/streaming.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PHRASES, WORDS, TOPICS = 40_000, 30_000, 20
OUT = Path(__file__).parent.parent / "results" / "reference" / "benchmarks" / "streaming.json"
SETTINGS = [
    *("data=files", "name=streaming", "width=128", "nesting_dims=[8,32,128]", "arms=[mrl_e]", "trainer.batch_size=256"),
    *("trainer.steps=1000", "trainer.evaluations=2", "trainer.checkpoint_seconds=20", "optimizer.learning_rate=3e-3"),
    *("evaluation.neighbours=false", "evaluation.refit=null", "evaluation.interpolated=false"),
]


def write(path: Path, rows: int, seed: int) -> Path:
    """`rows` lines of JSON."""
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
            pairs = rng.integers(0, PHRASES, (min(100_000, rows - start), 2)).tolist()
            file.writelines(
                f'{{"text": "{phrases[a]} {phrases[b]}", "label": "topic {a % TOPICS}"}}\n' for a, b in pairs
            )
    partial.rename(path)
    return path


def train(folder: Path, rows: int, run: str, streamed: bool) -> dict[str, float]:
    """One training in a process of its own: what it took, and what it came to."""
    path = write(folder / f"{rows}.jsonl", rows, 1)
    small = {name: write(folder / f"{name}.jsonl", 10_000, seed) for name, seed in (("validation", 2), ("test", 3))}
    files = [f"data.train={path}", *(f"data.{name}={place}" for name, place in small.items())]
    place = [f"data.cache_dir={folder / 'cache'}", f"results_dir={folder / 'results'}", f"run={run}"]
    place += [f"data.streaming={str(streamed).lower()}"]
    command = [sys.executable, "-m", "mrl_jax.train", *SETTINGS, *files, *place]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    prepared, said = (0.0, 0.0), ""
    for said in process.stderr:
        if " to train, " in said:
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            prepared = time.monotonic() - began, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}: {said}")
    directory = folder / "results" / "streaming" / run
    log = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["examples_per_second"] for line in log if line["split"] == "train"]
    found = [line.split(",") for line in (directory / "evaluation.csv").read_text().splitlines()]
    accuracy = next(float(row[-1]) for row in found if row[3:6] == ["128", "test", "linear_top1"])
    return {
        "rows": rows,
        "source_gb": round(path.stat().st_size / 1e9, 3),
        "preparation_seconds": round(prepared[0], 1),
        "preparation_cpu_seconds": round(prepared[1], 1),
        "peak_rss_gb": round(usage.ru_maxrss * 1024 / 1e9, 3),
        "examples_per_second": float(np.median(speeds[len(speeds) // 10 :])),
        "test_accuracy": accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--both", type=int, default=1_000_000, help="rows that are trained on in memory as well")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/streaming"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%H%M%S")
    results: dict[str, dict[str, float]] = {}
    for rows in options.rows:
        results[f"{rows:,} rows streamed"] = train(options.folder, rows, f"{stamp}-{rows}", streamed=True)
        print(rows, results, flush=True)
    memory = train(options.folder, options.both, f"{stamp}-memory", streamed=False)
    again = train(options.folder, options.both, f"{stamp}-again", streamed=True)
    results[f"{options.both:,} rows in memory"] = memory
    results[f"{options.both:,} rows streamed, prepared before"] = again
    ratios = {
        "examples/s streamed ÷ in memory": round(again["examples_per_second"] / memory["examples_per_second"], 3),
        "peak RSS streamed ÷ in memory": round(again["peak_rss_gb"] / memory["peak_rss_gb"], 3),
    }
    for name, found in (*results.items(), ("ratios", ratios)):
        print(f"{name}: {found}")
    content = {"cores": os.cpu_count(), "settings": SETTINGS, **results, "ratios": ratios}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
