"""Nested losses of pairs against sentence-transformers' MatryoshkaLoss, on the same embeddings.

    python benchmarks/contrastive.py [--threads 2] [--rounds 5] [--json FILE]

Forward and backward, float32, of the symmetric InfoNCE (MultipleNegativesSymmetricRankingLoss), CoSENT and cosine
regression (CosineSimilarityLoss) with 2,048 pairs of 384 dimensions at 5 nesting dims; InfoNCE also at one and at 12.
Each measurement is a fresh process, sides alternate, and the median over the rounds of the ratio within a round counts.
Extra memory is the peak of the resident set in one call above what the process had before it, everything compiled and
every thread started. Losses and gradients are compared as well. Needs the packages of `mrl_jax[interop]`.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fresh import machine, measured, pin

BATCH, WIDTH, SCALE = 2048, 384, 20.0
ALL_DIMS = {1: (384,), 5: (32, 64, 128, 256, 384), 12: tuple(range(32, 385, 32))}
CALLS = 7  # timed in each process, of which the median counts


class Case(NamedTuple):
    """What is measured: a loss at so many nesting dims."""

    loss: str
    count: int


CASES = (Case("info_nce", 5), Case("info_nce", 1), Case("info_nce", 12), Case("cosent", 5), Case("cosine", 5))


def pairs(batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of pairs that resemble each other, and their scores in fifths."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(batch, WIDTH)).astype(np.float32)
    b = a + 3 * rng.normal(size=(batch, WIDTH)).astype(np.float32)  # cosines of 0.3
    return a, b, (rng.integers(0, 26, batch) / 25).astype(np.float32)


def ours(case: Case) -> tuple[Callable[[], Any], Callable[[Any], list[np.ndarray]]]:
    import jax
    import jax.numpy as jnp

    from mrl_jax import losses

    dims = ALL_DIMS[case.count]
    weights = jnp.ones(len(dims))

    def loss(a: jax.Array, b: jax.Array, scores: jax.Array) -> jax.Array:
        match case.loss:
            case "info_nce":
                return losses.nested_info_nce(a, b, dims, weights, 1 / SCALE)[0]
            case "cosent":
                return losses.nested_cosent(a, b, scores, dims, weights, 1 / SCALE)[0]
        return losses.nested_cosine_regression(a, b, scores, dims, weights)[0]

    arrays = [jnp.asarray(x) for x in pairs(BATCH)]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays).compile()

    def values(result: Any) -> list[np.ndarray]:
        value, gradients = result
        return [np.asarray(x) for x in (value, *gradients)]

    return lambda: jax.block_until_ready(compiled(*arrays)), values  # type: ignore[no-untyped-call]


def theirs(case: Case) -> tuple[Callable[[], Any], Callable[[Any], list[np.ndarray]]]:
    import torch
    from sentence_transformers.losses import (
        CoSENTLoss,
        CosineSimilarityLoss,
        MatryoshkaLoss,
        MultipleNegativesSymmetricRankingLoss,
    )

    class Given(torch.nn.Module):
        """A model that returns the embeddings that it is given."""

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return {"sentence_embedding": features["embedding"]}

        def get_embedding_dimension(self) -> int:
            return WIDTH

    model = Given()
    match case.loss:
        case "info_nce":
            inner = MultipleNegativesSymmetricRankingLoss(model, scale=SCALE)
        case "cosent":
            inner = CoSENTLoss(model, scale=SCALE)
        case _:
            inner = CosineSimilarityLoss(model)
    loss = MatryoshkaLoss(model, inner, list(ALL_DIMS[case.count][::-1]))

    def prepared(batch: int) -> Callable[[], Any]:
        first, second, scores = (torch.tensor(x) for x in pairs(batch))
        a, b = first.requires_grad_(), second.requires_grad_()

        def call() -> Any:
            a.grad = b.grad = None
            value = loss([{"embedding": a}, {"embedding": b}], scores)
            value.backward()
            return value, a.grad, b.grad

        return call

    prepared(32)()  # starts the threads
    return prepared(BATCH), lambda result: [x.detach().numpy() for x in result]


def resident(peak: bool) -> int:
    """Bytes of memory that the process has, or had at most since `forget_peak`."""
    field = "VmHWM:" if peak else "VmRSS:"
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def worker(side: str, case: Case, out: Path) -> dict[str, float]:
    call, values = {"ours": ours, "theirs": theirs}[side](case)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but not given back would hide what a call needs
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = resident(peak=False)
    result = call()
    extra = resident(peak=True) - before
    np.savez(out, *values(result))
    del result
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return {"milliseconds": statistics.median(times), "extra_mib": extra / 2**20}


def difference(first: Path, second: Path) -> tuple[float, float]:
    """Relative difference of the losses, and the largest of the gradients relative to their largest entry."""
    (loss, *gradients), (other, *others) = (
        [file[f"arr_{i}"] for i in range(3)] for file in map(np.load, (first, second))
    )
    off = [np.max(np.abs(g - o)) / np.max(np.abs(o)) for g, o in zip(gradients, others, strict=True)]
    return float(abs(loss - other) / abs(other)), float(max(off))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="cores that either side may use")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each side and case")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, loss, count, out = options.worker
        pin(options.threads)
        print(json.dumps(worker(side, Case(loss, int(count)), Path(out))))
        return
    scratch = {side: Path(f"/tmp/contrastive-{os.getpid()}-{side}.npz") for side in ("ours", "theirs")}
    runs: dict[Case, dict[str, list[dict[str, float]]]] = {case: {"ours": [], "theirs": []} for case in CASES}
    differences = {}
    for _ in range(options.rounds):
        for case, sides in runs.items():
            for side, found in sides.items():
                found.append(measured(side, case.loss, case.count, scratch[side], "--threads", options.threads))
            differences[case] = difference(scratch["ours"], scratch["theirs"])
    for path in scratch.values():
        path.unlink()
    report: dict[str, Any] = {}
    for case, sides in runs.items():
        figures: dict[str, Any] = {"dims": ALL_DIMS[case.count]}
        for unit in ("milliseconds", "extra_mib"):
            a, b = ([x[unit] for x in sides[side]] for side in ("ours", "theirs"))
            figures[unit] = {
                "ours": a,
                "theirs": b,
                "ratio": statistics.median(x / y for x, y in zip(a, b, strict=True)),
            }
        figures["relative_difference"] = dict(zip(("loss", "gradient"), differences[case], strict=True))
        report[f"{case.loss} at {case.count}"] = figures
        ms, mib = figures["milliseconds"], figures["extra_mib"]
        print(
            f"{case.loss:<9}{case.count:>3} dims: {statistics.median(ms['ours']):8.1f} ms to "
            f"{statistics.median(ms['theirs']):8.1f} ms, ratio {ms['ratio']:.3f}; "
            f"{statistics.median(mib['ours']):6.0f} MiB to {statistics.median(mib['theirs']):6.0f} MiB, "
            f"ratio {mib['ratio']:.3f}; "
            f"loss differs by {differences[case][0]:.1e}, gradient by {differences[case][1]:.1e}"
        )
    growth = {
        side: statistics.median(
            many["milliseconds"] / one["milliseconds"]
            for many, one in zip(runs[Case("info_nce", 12)][side], runs[Case("info_nce", 1)][side], strict=True)
        )
        for side in ("ours", "theirs")
    }
    print(f"InfoNCE from 1 to 12 dims: {growth['ours']:.2f} times as long; theirs {growth['theirs']:.2f} times")
    report["growth from 1 to 12 dims"] = growth
    versions = {name: version(name) for name in ("jax", "torch", "sentence-transformers")}
    report["machine"] = machine(threads=options.threads, rounds=options.rounds, **versions)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
