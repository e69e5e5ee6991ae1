"""Nested cross-entropy of 100,000 classes: all logits at once against tiles of classes.

    direct    `losses.nested_cross_entropy` of K logits [B, C]
    streamed  `many_classes.cross_entropies`, what `heads.nested_loss` chooses at this size

Forward and backward, gradients with respect to embeddings and heads; time on the clock, and of the processors, which a
busy machine disturbs less. Each variant runs in a process of its own, for its
peak memory: what XLA plans for temporaries, and by how much the resident memory rises above what head, gradients and
embeddings take by themselves.

    python benchmarks/many_classes.py [--threads 2] [--processes 3] [--rounds 3] [--json FILE]
"""

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

from fresh import machine, measured, pin

BATCH, WIDTH, CLASSES, SMALLEST = 256, 256, 100_000, 8
KINDS, FORMS = ("separate", "tied"), ("direct", "streamed")


def measure(kind: str, form: str, rounds: int) -> dict[str, Any]:
    """Time and memory of one variant in this process."""
    # Imported here: the number of threads is settled before JAX starts them.
    import jax
    import jax.numpy as jnp

    from mrl_jax import nesting
    from mrl_jax.losses import heads

    dims = nesting.log_spaced(WIDTH, SMALLEST)
    keys = jax.random.split(jax.random.key(0), 3)
    head = heads.init(keys[0], kind, dims, CLASSES)
    z = jax.random.normal(keys[1], (BATCH, WIDTH))
    labels = jax.random.randint(keys[2], (BATCH,), 0, CLASSES)

    def loss(head: heads.Head, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return heads.nested_loss(head, kind, z, labels, jnp.ones(len(dims)), dims, streamed=form == "streamed")

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(head, z).compile()
    plan = step.memory_analysis()
    jax.block_until_ready((head, z, labels))  # type: ignore[no-untyped-call]
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    times, spent = [], []
    for _ in range(1 + rounds):
        start, processor = time.perf_counter(), time.process_time()
        ((value, _), _) = jax.block_until_ready(step(head, z))  # type: ignore[no-untyped-call]
        times.append((time.perf_counter() - start) * 1e3)
        spent.append((time.process_time() - processor) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "dims": dims,
        "loss": float(value),
        "milliseconds": statistics.median(times[1:]),
        "processor_milliseconds": statistics.median(spent[1:]),
        "temporary_mib": plan.temp_size_in_bytes / 2**20,
        "gradients_mib": plan.output_size_in_bytes / 2**20,
        "resident_rise_mib": (peak - before) / 2**20,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="nested cross-entropy of very many classes")
    parser.add_argument("--threads", type=int, default=2, help="cores that JAX may use")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes a variant")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls in a process")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        pin(arguments.threads)
        print(json.dumps(measure(*arguments.worker, arguments.rounds)))
        return
    # Variants take turns, so that a busy minute does not fall on one of them alone.
    variants = [(kind, form) for kind in KINDS for form in FORMS]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {variant: [] for variant in variants}
    for _ in range(arguments.processes):
        for variant in variants:
            runs[variant].append(measured(*variant, "--threads", arguments.threads, "--rounds", arguments.rounds))
    first = runs[variants[0]][0]
    dims = first["dims"]
    logits = 4 * len(dims) * BATCH * CLASSES / 2**20
    print(f"B={BATCH} D={WIDTH} C={CLASSES:,}, {len(dims)} dims; all logits once: {logits:.0f} MiB; medians")
    report: dict[str, Any] = {"batch": BATCH, "width": WIDTH, "classes": CLASSES, "dims": dims, "logits_mib": logits}
    for kind, form in variants:
        figures = {
            key: statistics.median(run[key] for run in runs[kind, form])
            for key in runs[kind, form][0]
            if key not in ("dims", "jax", "device")
        }
        report.setdefault(kind, {})[form] = figures
        print(
            f"  {kind:<9}{form:<9}{figures['milliseconds']:8.0f} ms, "
            f"processors {figures['processor_milliseconds']:.0f}, temporaries {figures['temporary_mib']:7.1f} MiB, "
            f"resident + {figures['resident_rise_mib']:6.0f} MiB, of it {figures['gradients_mib']:.0f} gradients, "
            f"loss {figures['loss']:.6f}"
        )
    report["machine"] = machine(jax=first["jax"], device=first["device"], threads=arguments.threads,
                                processes=arguments.processes, rounds=arguments.rounds)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
