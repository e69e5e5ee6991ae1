"""What nesting costs: forward and backward of the nested loss against the loss of one fixed-size model.

    fixed        softmax cross-entropy of one head on the whole embedding
    mrl_e        one tied head, block-cumulative: `nesting.nested_logits`
    mrl          a head a granularity: `heads.logits`; its products alone cost Σm/D of the fixed-size ones
    mrl_e_naive  one tied head, a product a prefix: what block by block saves

Gradients are with respect to the embeddings and the heads. The variants are timed in turn, call by call; each fresh
process gives one median a variant and one ratio to `fixed`, of which the median and the range over processes are given
(a process can be unlucky with its memory, and stays so).

    python benchmarks/nested_loss.py [--threads 1] [--processes 5] [--rounds 15] [--json FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fresh import machine, measured, pin


class Setting(NamedTuple):
    batch: int
    width: int
    classes: int
    smallest: int  # of the nesting dims, which double up to the width


SETTINGS = {"imagenet": Setting(256, 2048, 1000, 8), "sentences": Setting(1024, 384, 100, 6)}
GOALS = {"imagenet": 1.10, "sentences": 1.40}  # of mrl_e ÷ fixed on one thread; of mrl: 1.05 × Σm/D


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Median milliseconds of each variant in this process, with the machine it ran on."""
    # Imported here: the number of threads is settled before JAX starts them.
    import jax
    import jax.numpy as jnp

    from mrl_jax import nesting
    from mrl_jax.losses import heads, nested_cross_entropy

    batch, width, classes, smallest = setting
    dims = nesting.log_spaced(width, smallest)
    keys = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(keys[0], (batch, width))
    labels = jax.random.randint(keys[1], (batch,), 0, classes)

    def naive(head: heads.Head, z: jax.Array) -> tuple[jax.Array, ...]:
        (kernel,) = head["kernel"]  # one array: prefixes of it are read, not blocks
        return tuple(z[:, :m] @ kernel[:m] + head["bias"] for m in dims)

    def variant(kind: str, at: tuple[int, ...], logits: Callable[..., Any], losses: int) -> Callable[[], Any]:
        head = heads.init(keys[2], kind, at, classes)
        weights = jnp.ones(losses)

        def loss(head: heads.Head, z: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
            return nested_cross_entropy(logits(head, z), labels, weights)

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return lambda: jax.block_until_ready(step(head, z, labels, weights))  # type: ignore[no-untyped-call]

    variants = {
        "fixed": variant("separate", (width,), lambda head, z: heads.logits(head, "separate", z, (width,)), 1),
        "mrl_e": variant("tied", dims, lambda head, z: heads.logits(head, "tied", z, dims), len(dims)),
        "mrl": variant("separate", dims, lambda head, z: heads.logits(head, "separate", z, dims), len(dims)),
        "mrl_e_naive": variant("tied", (width,), naive, len(dims)),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for warming_up in (True, True, *[False] * rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if not warming_up:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {
        "dims": dims,
        "milliseconds": {name: statistics.median(values) for name, values in times.items()},
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of nested losses")
    parser.add_argument("--threads", type=int, default=1, help="cores that JAX may use")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes a setting")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each variant in a process")
    parser.add_argument("--times", type=int, default=1, help="what B is multiplied by, for accelerators")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--worker", choices=SETTINGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = {name: one._replace(batch=one.batch * arguments.times) for name, one in SETTINGS.items()}
    if arguments.worker:
        pin(arguments.threads)
        print(json.dumps(measure(settings[arguments.worker], arguments.rounds)))
        return
    # Settings take turns as well, so that a busy minute does not fall on one of them alone.
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for _ in range(arguments.processes):
        for name in SETTINGS:
            words = ("--threads", arguments.threads, "--rounds", arguments.rounds, "--times", arguments.times)
            runs[name].append(measured(name, *words))
    report: dict[str, Any] = {}
    for name, setting in settings.items():
        dims = runs[name][0]["dims"]
        floor = sum(dims) / setting.width
        goals = {"mrl_e": GOALS[name], "mrl": 1.05 * floor}
        print(f"\nB={setting.batch} D={setting.width} C={setting.classes}, {len(dims)} dims {dims[0]} … {dims[-1]}")
        print(f"FLOP floor of separate heads Σm/D = {floor:.3f}; {arguments.threads} thread(s), ms and ratio to fixed")
        figures = {}
        for variant in runs[name][0]["milliseconds"]:
            times = summary([run["milliseconds"][variant] for run in runs[name]])
            ratios = summary([run["milliseconds"][variant] / run["milliseconds"]["fixed"] for run in runs[name]])
            figures[variant] = {"milliseconds": times, "ratio": ratios, "goal": goals.get(variant)}
            goal = f"   goal ≤ {goals[variant]:.2f}" if variant in goals and arguments.threads == 1 else ""
            print(
                f"  {variant:<12}{times['median']:8.2f} ms ({times['min']:.2f} … {times['max']:.2f})"
                f"{ratios['median']:8.3f} × ({ratios['min']:.3f} … {ratios['max']:.3f}){goal}"
            )
        report[name] = {**setting._asdict(), "dims": dims, "flop_floor": floor, "variants": figures}
    first = runs[next(iter(SETTINGS))][0]
    report["machine"] = machine(jax=first["jax"], device=first["device"], threads=arguments.threads,
                                processes=arguments.processes, rounds=arguments.rounds)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
