"""What nesting costs the losses of pairs: time and memory at several dims ÷ those at one.

    python benchmarks/nested_pairs.py [--threads 2] [--rounds 9] [--json FILE]

Forward and backward of symmetric InfoNCE and of the sigmoid loss, float32, on 2,048 pairs of 512 dimensions. All
programs run in one process, one after the other in each round; the median over rounds of the ratio within a round
counts, of processor time where one core is allowed and of time by the clock where two are. Memory is what the compiled
program allocates beside its arguments and results.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from fresh import machine, pin

BATCH, WIDTH, TEMPERATURE = 2048, 512, 0.1
DIMS = {1: (512,), 5: (32, 64, 128, 256, 512), 12: (8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512)}
LOSSES = ("info_nce", "sigmoid")


def compiled(name: str, dims: tuple[int, ...]) -> Any:
    """The gradient of a loss with respect to both sides of the pairs."""
    import jax
    import jax.numpy as jnp

    from mrl_jax import losses

    nested = {"info_nce": losses.nested_info_nce, "sigmoid": losses.nested_sigmoid}[name]

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return nested(a, b, dims, jnp.ones(len(dims)), TEMPERATURE)[0]

    shape = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(shape, shape).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    pin(options.threads)
    import jax

    first, noise = jax.random.normal(jax.random.key(0), (2, BATCH, WIDTH))
    pairs = first, first + 3 * noise
    clock = time.process_time if options.threads == 1 else time.perf_counter
    programs = {(name, count): compiled(name, dims) for name in LOSSES for count, dims in DIMS.items()}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in programs}
    for _ in range(options.rounds):
        for key, program in programs.items():
            jax.block_until_ready(program(*pairs))
            started = clock()
            jax.block_until_ready(program(*pairs))
            seconds[key].append(clock() - started)
    report = machine(threads=options.threads, rounds=options.rounds, pairs=BATCH, width=WIDTH)
    for (name, count), times in seconds.items():
        bytes_of = {n: programs[name, n].memory_analysis().temp_size_in_bytes for n in (1, count)}
        report[f"{name} at {count}"] = found = {
            "milliseconds": 1e3 * statistics.median(times),
            "÷ one dim": statistics.median(a / b for a, b in zip(times, seconds[name, 1], strict=True)),
            "MiB": bytes_of[count] / 2**20,
            "MiB ÷ one dim": bytes_of[count] / bytes_of[1],
        }
        print(f"{name:<9} at {count:>2} dims:", ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
