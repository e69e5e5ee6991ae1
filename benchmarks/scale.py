"""What things cost as they grow: curves of one step and one search, and the throughput of several processes.

    python benchmarks/scale.py curves       # a training step against K, D, B and arms; a search against N; minutes
    python benchmarks/scale.py processes    # examples a second: one process with two cores, two with a core each

`docs/scale.md` reads from the JSON what larger numbers would need. Times are medians of calls that take turns within a
process; ratios are to the first point of a curve.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROUNDS = 9


def timed(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds of each call, in turn, after one that compiles and one that warms up."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 2):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if i > 1:
                spent[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in spent.items()}


def curves(only: Sequence[str], times: int) -> dict[str, Any]:
    """Milliseconds of a training step of a small MLP on features, and of a search, as one number grows."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mrl_jax import arms, config, losses
    from mrl_jax.evaluate import neighbours
    from mrl_jax.tasks import train_step

    rng = np.random.default_rng(0)
    classes, features = 100, 512

    def step(
        name: str, width: int = 256, dims: Sequence[int] = (32, 64, 128, 256), batch: int = 1024
    ) -> Callable[[], object]:
        words = ["data=features", "encoder=mlp", f"width={width}", f"nesting_dims={list(dims)}", f"arms=[{name}]"]
        settings = config.from_command_line([*words, "data.train=a.npz", "data.test=a.npz"])
        described = {"inputs": {"features": [features]}, "vocabulary": 0, "classes": ["c"] * classes}
        program = train_step(settings, described)
        arm = arms.expand((name,), settings.nesting_dims)[0]
        inputs = {
            "features": jnp.asarray(rng.standard_normal((batch * times, features)), jnp.float32),
            "label": jnp.asarray(rng.integers(0, classes, batch * times)),
        }
        compiled, held = jax.jit(program.step, donate_argnums=0), [program.init(0)]
        row, key = arm.row(program.kinds), jax.random.key(0)

        def call() -> object:
            held[0], measures = compiled(held[0], inputs, row, key)
            return jax.block_until_ready(measures)  # type: ignore[no-untyped-call]

        return call

    def pairs(count: int) -> Callable[[], object]:
        dims = tuple(384 * (i + 1) // count for i in range(count))
        z = [jnp.asarray(rng.standard_normal((1024, 384)), jnp.float32) for _ in range(2)]
        loss = jax.jit(jax.grad(lambda a, b: losses.nested_info_nce(a, b, dims, jnp.ones(count), 0.05)[0], (0, 1)))
        return lambda: jax.block_until_ready(loss(*z))  # type: ignore[no-untyped-call]

    def search(count: int) -> Callable[[], object]:
        database = rng.standard_normal((count, 256)).astype(np.float32)
        queries = rng.standard_normal((256, 256)).astype(np.float32)
        return lambda: list(neighbours.neighbours(queries, database, (64, 256), 10))

    def spaced(count: int) -> list[int]:
        return [256 * (i + 1) // count for i in range(count)]

    grow: dict[str, Callable[[], dict[str, Callable[[], object]]]] = {
        "step, mrl_e, against K (B=1024, D=256, 100 classes)": lambda: {
            f"{k}": step("mrl_e", dims=spaced(k)) for k in (1, 2, 4, 8, 16)
        },
        "step, mrl, against K": lambda: {f"{k}": step("mrl", dims=spaced(k)) for k in (1, 2, 4, 8, 16)},
        "step, mrl_e, against D (K=4)": lambda: {
            f"{d}": step("mrl_e", d, (d // 8, d // 4, d // 2, d)) for d in (64, 128, 256, 512, 1024, 2048, 4096)
        },
        "step, mrl_e, against B (K=4, D=256)": lambda: {
            f"{b}": step("mrl_e", batch=b) for b in (256, 512, 1024, 2048, 4096)
        },
        "InfoNCE forward and backward against K (B=1024, D=384)": lambda: {f"{k}": pairs(k) for k in (1, 2, 4, 8, 12)},
        "search of 256 queries at 64 and 256 dims against N": lambda: {
            f"{n}": search(n) for n in (10_000, 30_000, 100_000, 300_000)
        },
    }
    found: dict[str, Any] = {}
    for name, calls in grow.items():
        if not only or any(word in name for word in only):
            found[name] = points = timed(calls(), 3 if name.startswith("search") else ROUNDS)
            first = next(iter(points.values()))
            print(name)
            print("".join(f"{at:>10}" for at in points))
            print("".join(f"{ms:>10.2f}" for ms in points.values()) + "  ms")
            print("".join(f"{ms / first:>10.2f}" for ms in points.values()) + "  × the first", flush=True)
    return found | {
        "times": times,
        "devices": [device.device_kind for device in jax.local_devices()],
        "jax": jax.__version__,
    }


# Settings of the throughput of processes; `together`: members on devices of their own, else a batch shared out.
RUNS = {
    "MiniLM, 20 Newsgroups, batch 64": [
        "+experiment=newsgroups_minilm",
        "trainer.batch_size=64",
        "trainer.steps=16",
        "data.limit=400",
        "encoder.max_length=128",
    ],
    "bag, 20 Newsgroups, batch 1024": ["+experiment=newsgroups", "trainer.batch_size=1024", "trainer.steps=80"],
    "small ResNet, Fashion-MNIST, batch 128": [
        "+experiment=fashion_mnist",
        "trainer.batch_size=128",
        "trainer.steps=40",
        "data.limit=2000",
    ],
    "two arms, bag, R52": [
        *("+experiment=reuters_r52", "trainer.steps=200", "arms=[mrl,mrl_e]"),
    ],
}


def throughput(words: Sequence[str], count: int, cores: Sequence[int]) -> float:
    """Examples (of all members) a second of a run by `count` processes on `cores`, from its training log."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        common = [f"results_dir={folder}", "name=scale", "run=a", "trainer.log_every=4", "trainer.evaluations=1"]
        common += ["evaluation.neighbours=false", "evaluation.refit=null", "trainer.checkpoint_seconds=1000", "seeds=1"]
        started = []
        for rank in range(count):
            command = [sys.executable, "-m", "mrl_jax.train", *words, *common]
            if count > 1:
                command += ["distributed=explicit", f"distributed.coordinator=127.0.0.1:{port}"]
                command += [f"distributed.processes={count}", f"distributed.process={rank}"]
            mine = set(cores) if count == 1 else {cores[rank % len(cores)]}
            started.append(
                subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    preexec_fn=lambda mine=mine: os.sched_setaffinity(0, mine),  # type: ignore[misc]
                )
            )  # fmt: skip
        statuses = [process.wait() for process in started]
        if any(statuses):
            sys.exit(f"{' '.join(words)} failed with {count} process(es)")
        log = [json.loads(line) for line in (Path(folder) / "scale" / "a" / "metrics.jsonl").read_text().splitlines()]
    # The first steps compile; a line is of one member, its speed that of all that are trained together.
    speeds = [line["examples_per_second"] for line in log if line["split"] == "train" and line["step"] > 4]
    return statistics.median(speeds)


def processes(repeats: int, only: Sequence[str]) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[:2]
    found: dict[str, Any] = {}
    for name, words in RUNS.items():
        if only and not any(word in name for word in only):
            continue
        one, two = [], []
        for _ in range(repeats):
            one.append(throughput(words, 1, cores))
            two.append(throughput(words, 2, cores))
        ratios = [b / a for a, b in zip(one, two, strict=True)]
        found[name] = {"one process": one, "two processes": two, "ratio": statistics.median(ratios), "ratios": ratios}
        print(f"{name:<44}{one[-1]:10.0f}{two[-1]:10.0f} examples/s   two ÷ one {found[name]['ratio']:.2f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curves", "processes"))
    parser.add_argument("--repeats", type=int, default=3, help="of each pair of runs")
    parser.add_argument("--only", nargs="+", default=[], help="curves or runs whose name holds one of these words")
    parser.add_argument(
        "--times", type=int, default=1, help="what the B of every step is multiplied by, for accelerators"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.what == "processes":
        found = processes(options.repeats, options.only)
    else:
        found = curves(options.only, options.times)
    found["machine"] = {"platform": platform.platform(), "cores": len(os.sched_getaffinity(0))}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
