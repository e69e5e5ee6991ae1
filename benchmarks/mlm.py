"""Masked language modelling, nested: five dims ÷ one dim, of the loss alone and of a whole training step.

    loss    `losses.nested_token_prediction`, forward and backward with respect to states, table and bias: 600 hidden
            tokens, 384 dims, a vocabulary of 30,522, in tiles of tokens and all logits at once
    step    the compiled training step of a transformer of MiniLM's size (6 layers, 384 wide) on 64 packed rows of 64
            tokens, 616 of them hidden

Both numbers of dims run in one process, in turn, round after round, so that a busy minute does not fall on one of them
alone; time on the clock, and of the processors, which other work disturbs less. Memory is what XLA plans for
temporaries.

    python benchmarks/mlm.py [--threads 1] [--rounds 5] [--skip-step] [--json FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fresh import machine, measured, pin

HIDDEN, WIDTH, VOCABULARY = 600, 384, 30_522
DIMS = {"five dims": (24, 48, 96, 192, 384), "one dim": (384,)}
ROWS, LENGTH = 64, 64


def take_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """The median time of each call in milliseconds, after one that is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            start, processor = time.perf_counter(), time.process_time()
            call()
            times[name].append(((time.perf_counter() - start) * 1e3, (time.process_time() - processor) * 1e3))
    found = {}
    for name, each in times.items():
        clock, spent = zip(*each[1:], strict=True)
        found[name] = {"milliseconds": statistics.median(clock), "processor_milliseconds": statistics.median(spent)}
    return found


def measure_loss(rounds: int) -> dict[str, Any]:
    """The loss alone, in both forms."""
    import jax
    import jax.numpy as jnp

    from mrl_jax.losses import nested_token_prediction

    keys = jax.random.split(jax.random.key(0), 3)
    states, table = jax.random.normal(keys[0], (HIDDEN, WIDTH)), jax.random.normal(keys[1], (VOCABULARY, WIDTH)) / 20
    bias, tokens = jnp.zeros(VOCABULARY), jax.random.randint(keys[2], (HIDDEN,), 0, VOCABULARY)
    calls, memory = {}, {}
    for form in ("tiles", "at once"):
        for name, dims in DIMS.items():

            def loss(h: Any, e: Any, b: Any, dims: Any = dims, form: str = form) -> Any:
                return nested_token_prediction(h, e, b, tokens, dims, jnp.ones(len(dims)), form == "tiles")

            step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)).lower(states, table, bias)
            compiled = step.compile()
            memory[f"{form}, {name}"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
            calls[f"{form}, {name}"] = lambda run=compiled: jax.block_until_ready(run(states, table, bias))
    found = take_turns(calls, rounds)
    return {name: figures | {"temporary_mib": memory[name]} for name, figures in found.items()}


def measure_step(rounds: int) -> dict[str, Any]:
    """A whole training step."""
    import jax
    import numpy as np

    from mrl_jax import arms
    from mrl_jax.config import LossConfig, OptimizerConfig
    from mrl_jax.encoders.transformer_settings import TransformerConfig
    from mrl_jax.tasks.tokens import TokenObjective
    from mrl_jax.training.step import TrainStep

    rng, hidden = np.random.default_rng(0), 8 * -(-int(0.15 * ROWS * LENGTH) // 8)
    batch = {
        "ids": rng.integers(1000, VOCABULARY, (ROWS, LENGTH)).astype(np.int32),
        "segment": np.ones((ROWS, LENGTH), np.int32),
        "position": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "masked": rng.choice(ROWS * LENGTH, hidden, replace=False).astype(np.int32),
        "label": np.stack([rng.integers(1000, VOCABULARY, hidden), np.zeros(hidden)], axis=1).astype(np.int32),
    }
    encoder = TransformerConfig(attention_dropout=0.0, max_length=LENGTH, vocabulary=VOCABULARY)
    calls = {}
    for name, dims in DIMS.items():
        program = TrainStep(
            encoder, {"ids": (LENGTH,), "mask": (LENGTH,)}, VOCABULARY, WIDTH,
            TokenObjective(dims, VOCABULARY, LossConfig("mlm"), True), OptimizerConfig(), 100,
        )  # fmt: skip
        row = arms.expand(["mrl"], dims)[0].row(program.kinds)
        step, state = jax.jit(program.step, donate_argnums=0), [program.init(0)]

        def call(step: Any = step, state: list[Any] = state, row: Any = row) -> None:
            state[0], measures = step(state[0], batch, row, jax.random.key(0))
            jax.block_until_ready((state[0], measures))  # type: ignore[no-untyped-call]

        calls[name] = call
    return take_turns(calls, rounds)


MEASURED = {"loss": measure_loss, "step": measure_step}


def main() -> None:
    parser = argparse.ArgumentParser(description="masked language modelling, nested: five dims and one")
    parser.add_argument("--threads", type=int, default=1, help="cores that JAX may use")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each variant")
    parser.add_argument("--skip-step", action="store_true", help="measure the loss alone")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--worker", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        pin(arguments.threads)
        import jax

        found = MEASURED[arguments.worker](arguments.rounds)
        print(json.dumps(found | {"machine": {"jax": jax.__version__, "device": jax.devices()[0].device_kind}}))
        return
    report: dict[str, Any] = {"hidden": HIDDEN, "width": WIDTH, "vocabulary": VOCABULARY, "dims": DIMS}
    for what in list(MEASURED)[: 1 if arguments.skip_step else None]:
        found = measured(what, "--threads", arguments.threads, "--rounds", arguments.rounds)
        report["machine"] = machine(**found.pop("machine"), threads=arguments.threads, rounds=arguments.rounds)
        report[what] = found
        for name, figures in found.items():
            memory = f", temporaries {figures['temporary_mib']:.0f} MiB" if "temporary_mib" in figures else ""
            print(
                f"  {what:<5}{name:<20}{figures['milliseconds']:8.0f} ms, processors "
                f"{figures['processor_milliseconds']:.0f}{memory}"
            )
        for name in [name for name in found if name.endswith("five dims")]:
            one = found[name.replace("five dims", "one dim")]
            ratios = {key: found[name][key] / one[key] for key in ("milliseconds", "processor_milliseconds")}
            report[what][name] |= {f"{key}_ratio": ratio for key, ratio in ratios.items()}
            print(
                f"  {what}, {name} ÷ one: {ratios['milliseconds']:.2f}, by processors "
                f"{ratios['processor_milliseconds']:.2f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
