"""Training and encoding with published weights against sentence-transformers, on the same CPU at the same precision.

    python benchmarks/minilm.py [--weights minilm] [--what train encode memory] [--rounds 3] [--steps 24] [--json FILE]

train    pairs per second: 32 pairs a step of WordNet definitions and their words, in random order; nested InfoNCE
         (MatryoshkaLoss over MultipleNegativesRankingLoss) at 5 dims, dropout 0.1, AdamW, tokens prepared beforehand on
         both sides, collation and packing in the measured time
encode   texts per second: WordNet glosses, each side's own encode, tokenisation included
memory   of one such training step of 32 texts of 128 tokens in bfloat16, with and without `encoder.remat`:
         what the compiled program holds at once, and the peak of the whole process; the peak of the other side's

Each measurement is a fresh process; sides alternate within a round and take turns at being first, and the median of the
rounds counts. Figures are per second by the clock, and per second of processor time, which other work on the machine
disturbs less. float32, and bfloat16: the operands of products, by autocast on the other side. `model` is the other
side's encoding with everything in bfloat16, activations too, which this project does not offer. Needs the packages of
`mrl_jax[interop]`.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fresh import measured

WIDTHS = {"minilm": 384, "mpnet": 768}
PAIRS = 32
WARM = 6  # steps before the clock starts: ours compile one shape of batch each
LONG_TEXTS, TOKENS = 32, 128  # in the step whose memory is measured, and their length


class Task(NamedTuple):
    """What a worker does."""

    weights: str
    dtype: str
    steps: int
    texts: int

    @property
    def dims(self) -> tuple[int, ...]:
        return (32, 64, 128, 256, WIDTHS[self.weights])


class Clock:
    """Time since it was made, by the clock and of all cores of this process."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def speed(self, n: int) -> tuple[float, float]:
        """`n` things per second, and per second of processor time."""
        clock, processor = self.started
        return n / (time.perf_counter() - clock), n / (time.process_time() - processor)


def peak() -> float:
    """The peak of this process's memory, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def dataset() -> Any:
    from mrl_jax import data

    return data.load(data.DataConfig(source="wordnet", task="pairs"))


def our_step(task: Task, remat: bool = False, pretrained: bool = False) -> tuple[Any, Any, Any]:
    """The training step, the reader of texts, and the loss weights of MRL; speed and memory ask for no weights."""
    from mrl_jax import arms, encoders
    from mrl_jax.config import LossConfig, OptimizerConfig
    from mrl_jax.encoders.transformer_settings import TransformerConfig
    from mrl_jax.tasks.pair_objectives import ContrastiveObjective
    from mrl_jax.training.step import TrainStep

    config = TransformerConfig(weights=task.weights, dtype=task.dtype, remat=remat)
    reader = encoders.fit(config, "wordnet", "text", [])
    encoder, vocabulary = encoders.standalone(config, reader.vocabulary)
    program = TrainStep(
        encoder=config if pretrained else encoder,
        inputs={"ids": (1,), "mask": (1,)},
        vocabulary=vocabulary,
        width=task.dims[-1],
        objective=ContrastiveObjective(task.dims, 2, LossConfig(name="info_nce", symmetric=False)),
        optimizer_config=OptimizerConfig(learning_rate=1e-5),
        steps=10_000,
    )
    (arm,) = arms.expand(["mrl"], task.dims)
    return program, reader, arm.row(program.kinds)


def ours_train(task: Task) -> tuple[float, float]:
    import jax

    from mrl_jax.training import batches
    from mrl_jax.training.batches import Examples, PairExamples

    pairs, steps = dataset().train, task.steps
    rows = np.random.default_rng(0).choice(len(pairs), PAIRS * (WARM * 4 + steps), replace=False)
    used, columns = np.unique(pairs.columns[rows], return_inverse=True)
    program, reader, row = our_step(task)
    texts = [pairs.table[i] for i in used]
    examples = PairExamples(Examples(reader(texts), np.zeros(len(texts))), columns.reshape(-1, 2), None)
    step, key = jax.jit(program.step, donate_argnums=0), jax.random.key(0)
    state = program.init(0)
    shapes = set()
    for batch in batches.prefetch(batches.stream(examples, 0, PAIRS, 0, WARM * 4 + steps), examples.take):
        if batch["ids"].shape not in shapes:  # every shape is compiled before the clock starts
            shapes.add(batch["ids"].shape)
            state, measures = step(state, batch, row, key)
    jax.block_until_ready(state)
    rows_of = list(batches.stream(examples, 0, PAIRS, 0, steps))
    clock = Clock()
    for batch in batches.prefetch(iter(rows_of), examples.take):
        state, measures = step(state, batch, row, key)
    jax.block_until_ready(measures)
    return clock.speed(PAIRS * steps)


def long_pairs() -> tuple[list[str], list[str]]:
    """Texts that are cut at 128 tokens, and those of their pairs."""
    n = LONG_TEXTS // 2
    return [f"fox {i} dog " * TOKENS for i in range(n)], [f"cat {i} bird " * TOKENS for i in range(n)]


def our_memory(task: Task, remat: bool = False) -> dict[str, float]:
    """MiB of one step."""
    import jax

    from mrl_jax.training.batches import Examples, PairExamples

    program, reader, row = our_step(task, remat)
    first, second = long_pairs()
    inputs = {name: array[:, :TOKENS] for name, array in reader(first + second).items()}
    columns = np.arange(LONG_TEXTS, dtype=np.int32).reshape(2, -1).T
    batch = PairExamples(Examples(inputs, np.zeros(LONG_TEXTS)), columns, None).take(np.arange(LONG_TEXTS // 2))
    assert batch["ids"].shape == (LONG_TEXTS, TOKENS), batch["ids"].shape
    state, key = program.init(0), jax.random.key(0)
    compiled = jax.jit(program.step, donate_argnums=0).lower(state, batch, row, key).compile()
    found = compiled.memory_analysis()
    beside = found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    clock = Clock()
    state, measures = compiled(state, batch, row, key)
    jax.block_until_ready(measures)
    return {
        "parameters_and_moments": found.argument_size_in_bytes / 2**20,
        "beside": beside / 2**20,
        "process_peak": peak(),
        "processor_seconds": 1 / clock.speed(1)[1],
    }


def their_memory(task: Task) -> dict[str, float]:
    """MiB of two steps: the second has the moments."""
    import torch
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model = their_model(task)
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), list(task.dims[::-1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    model.train()
    model.max_seq_length = TOKENS
    for _ in range(2):
        batch = [dict(model.tokenizer(part, truncation=True, max_length=TOKENS, return_tensors="pt"))
                 for part in long_pairs()]  # fmt: skip
        clock = Clock()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=task.dtype == "bfloat16"):
            value = loss(batch, torch.zeros(LONG_TEXTS // 2))
        value.backward()
        optimizer.step()
    return {"process_peak": peak(), "processor_seconds": 1 / clock.speed(1)[1]}


def theirs_train(task: Task) -> tuple[float, float]:
    import torch
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    pairs, steps = dataset().train, task.steps
    rows = np.random.default_rng(0).choice(len(pairs), PAIRS * (WARM + steps), replace=False)
    model = their_model(task)
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), list(task.dims[::-1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    model.train()
    tokenizer = model.tokenizer
    ids = [
        [tokenizer(pairs.table[i], truncation=True, max_length=256)["input_ids"] for i in pair]
        for pair in pairs.columns[rows]
    ]

    def features(part: list[list[list[int]]]) -> list[dict[str, Any]]:
        return [dict(tokenizer.pad({"input_ids": [pair[k] for pair in part]}, return_tensors="pt")) for k in (0, 1)]

    for done in range(WARM + steps):
        if done == WARM:
            clock = Clock()
        batch = features(ids[done * PAIRS : (done + 1) * PAIRS])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=task.dtype == "bfloat16"):
            value = loss(batch, torch.zeros(PAIRS))
        value.backward()
        optimizer.step()
    return clock.speed(PAIRS * steps)


def their_model(task: Task) -> Any:
    from sentence_transformers import SentenceTransformer, models

    from mrl_jax.encoders import huggingface

    transformer = models.Transformer(str(huggingface.resolve(task.weights)), max_seq_length=256)
    pooling = models.Pooling(WIDTHS[task.weights], pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


def glosses(task: Task) -> list[str]:
    from mrl_jax import data

    return list(data.load(data.DataConfig(source="wordnet")).test.inputs)[: task.texts]


def ours_encode(task: Task) -> tuple[float, float]:
    from mrl_jax.model import EmbeddingModel

    program, reader, _ = our_step(task, pretrained=True)
    model, texts = EmbeddingModel(program, program.init(0).model, reader, task.dims, "separate"), glosses(task)
    model.encode(texts, dim=64)
    clock = Clock()
    model.encode(texts, dim=64)
    return clock.speed(len(texts))


def theirs_encode(task: Task) -> tuple[float, float]:
    import torch

    model, texts = their_model(task), glosses(task)
    with torch.autocast("cpu", torch.bfloat16, enabled=task.dtype == "bfloat16"):
        return encode_speed(model, texts)


def model_encode(task: Task) -> tuple[float, float]:
    import torch

    return encode_speed(their_model(task).to(getattr(torch, task.dtype)), glosses(task))


def encode_speed(model: Any, texts: list[str]) -> tuple[float, float]:
    found = []
    for size in (16, 32, 64, 128):  # its best batch size is taken
        model.encode(texts[:256], batch_size=size)
        clock = Clock()
        model.encode(texts, batch_size=size, normalize_embeddings=True, truncate_dim=64)
        found.append(clock.speed(len(texts)))
    return max(clock for clock, _ in found), max(processor for _, processor in found)


WORKERS: dict[tuple[str, str], Callable[[Task], Any]] = {
    ("memory", "ours"): our_memory,
    ("memory", "remat"): partial(our_memory, remat=True),
    ("memory", "theirs"): their_memory,
    ("train", "ours"): ours_train,
    ("train", "theirs"): theirs_train,
    ("encode", "ours"): ours_encode,
    ("encode", "theirs"): theirs_encode,
    ("encode", "model"): model_encode,
}


def compare(what: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Speeds of each round, and the ratios of their medians: by the clock, and by processor time."""
    sides = ["ours", "theirs", "model"] if (what, dtype) == ("encode", "bfloat16") else ["ours", "theirs"]
    found: dict[str, list[Any]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            words = ("--weights", options.weights, "--steps", options.steps, "--texts", options.texts)
            found[side].append(measured(what, side, dtype, *words))
    clock, processor = (
        {side: statistics.median(pair[i] for pair in pairs) for side, pairs in found.items()} for i in (0, 1)
    )
    ratios = {
        side: {"clock": clock["ours"] / clock[side], "processor": processor["ours"] / processor[side]}
        for side in sides[1:]
    }
    others = "".join(
        f"; {side} {clock[side]:.1f}/s, ratio {ratio['clock']:.2f} by the clock, {ratio['processor']:.2f} by processor"
        for side, ratio in ratios.items()
    )
    print(f"{what:<7}{dtype:<9} ours {clock['ours']:.1f}/s{others}", flush=True)
    return {"per_second_and_per_processor_second": found, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", choices=WIDTHS, default="minilm")
    parser.add_argument("--what", nargs="+", choices=["train", "encode", "memory"], default=["train", "encode"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        what, side, dtype = options.worker
        task = Task(options.weights, dtype, options.steps, options.texts)
        print(json.dumps(WORKERS[what, side](task)))
        return
    report: dict[str, Any] = {
        "weights": options.weights, "cores": os.cpu_count(), "pairs_per_step": PAIRS, "texts": options.texts,
        "steps": options.steps, "load_before": os.getloadavg(),
    }  # fmt: skip
    for what in options.what:
        if what == "memory":
            for side in ("ours", "remat", "theirs"):
                report[f"memory {side}"] = found = measured("memory", side, "bfloat16", "--weights", options.weights)
                print("memory", side, {key: round(value) for key, value in found.items()}, flush=True)
            continue
        for dtype in options.dtypes:
            report[f"{what} {dtype}"] = compare(what, dtype, options)
            save(report, options.json)
    save(report, options.json)


def save(report: dict[str, Any], path: Path | None) -> None:
    """Write what is measured so far."""
    if path:
        path.write_text(json.dumps(report | {"load_after": os.getloadavg()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
