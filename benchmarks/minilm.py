"""Training and encoding with all-MiniLM-L6-v2 against sentence-transformers, on the same CPU at the same precision.

    python benchmarks/minilm.py [--rounds 3] [--steps 24] [--json FILE]

train    pairs a second: 32 pairs a step of WordNet definitions and their words, in random order; nested InfoNCE
         (MatryoshkaLoss over MultipleNegativesRankingLoss) at 32, 64, 128, 256 and 384 dims, dropout 0.1, AdamW,
         tokens prepared beforehand on both sides, collation and packing in the measured time
encode   texts a second: 4,096 WordNet glosses, each side's own encode, tokenisation included

Each measurement is a fresh process; sides alternate within a round, and the best of the rounds counts. float32, and
bfloat16: the operands of products, by autocast on the other side. `model` is the other side's encoding with everything
in bfloat16, activations too, which this project does not offer. Needs the packages of `mrl_jax[interop]`.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from fresh import measured

DIMS = (32, 64, 128, 256, 384)
PAIRS = 32
TEXTS = 4096
WARM = 6  # steps before the clock starts: ours compile one shape of batch each


def dataset() -> Any:
    from mrl_jax import data

    return data.load(data.DataConfig(source="wordnet", task="pairs"))


def ours_train(dtype: str, steps: int) -> float:
    import jax

    from mrl_jax import arms, encoders
    from mrl_jax.config import LossConfig, OptimizerConfig
    from mrl_jax.encoders.transformer import TransformerConfig
    from mrl_jax.tasks.pairs import ContrastiveObjective
    from mrl_jax.training import batches
    from mrl_jax.training.batches import Examples, PairExamples
    from mrl_jax.training.step import TrainStep

    pairs = dataset().train
    rows = np.random.default_rng(0).choice(len(pairs), PAIRS * (WARM * 4 + steps), replace=False)
    used, columns = np.unique(pairs.columns[rows], return_inverse=True)
    config = TransformerConfig(weights="minilm", dtype=dtype)
    reader = encoders.fit(config, "wordnet", "text", [])
    texts = [pairs.table[i] for i in used]
    examples = PairExamples(Examples(reader(texts), np.zeros(len(texts))), columns.reshape(-1, 2), None)
    encoder, vocabulary = encoders.standalone(config, reader.vocabulary)
    program = TrainStep(
        encoder=encoder,
        inputs={"ids": (1,), "mask": (1,)},
        vocabulary=vocabulary,
        width=384,
        objective=ContrastiveObjective(DIMS, 2, LossConfig(name="info_nce", symmetric=False)),
        optimizer_config=OptimizerConfig(learning_rate=1e-5),
        steps=10_000,
    )
    (arm,) = arms.expand(["mrl"], DIMS)
    step, key = jax.jit(program.step, donate_argnums=0), jax.random.key(0)
    state, row = program.init(0), arm.row(program.kinds)
    stream = batches.stream(examples, 0, PAIRS, 0, WARM * 4 + steps)
    made = batches.prefetch(stream, examples.take)
    shapes, held = set(), []
    for batch in made:  # every shape is compiled before the clock starts
        if len(held) < steps:
            held.append(batch)
        if batch["ids"].shape not in shapes:
            shapes.add(batch["ids"].shape)
            state, measures = step(state, batch, row, key)
    jax.block_until_ready(state)
    rows_of = list(batches.stream(examples, 0, PAIRS, 0, steps))
    started = time.perf_counter()
    for batch in batches.prefetch(iter(rows_of), examples.take):
        state, measures = step(state, batch, row, key)
    jax.block_until_ready(measures)
    return PAIRS * steps / (time.perf_counter() - started)


def theirs_train(dtype: str, steps: int) -> float:
    import torch
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    pairs = dataset().train
    rows = np.random.default_rng(0).choice(len(pairs), PAIRS * (WARM + steps), replace=False)
    model = their_model()
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), list(DIMS[::-1]))
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
            started = time.perf_counter()
        batch = features(ids[done * PAIRS : (done + 1) * PAIRS])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            value = loss(batch, torch.zeros(PAIRS))
        value.backward()
        optimizer.step()
    return PAIRS * steps / (time.perf_counter() - started)


def their_model() -> Any:
    from sentence_transformers import SentenceTransformer, models

    from mrl_jax.encoders import huggingface

    transformer = models.Transformer(str(huggingface.resolve("minilm")), max_seq_length=256)
    return SentenceTransformer(modules=[transformer, models.Pooling(384, pooling_mode="mean")], device="cpu")


def glosses() -> list[str]:
    from mrl_jax import data

    return list(data.load(data.DataConfig(source="wordnet")).test.inputs)[:TEXTS]


def ours_encode(dtype: str, steps: int) -> float:
    from mrl_jax import encoders
    from mrl_jax.config import LossConfig, OptimizerConfig
    from mrl_jax.encoders.transformer import TransformerConfig
    from mrl_jax.model import EmbeddingModel
    from mrl_jax.tasks.pairs import ContrastiveObjective
    from mrl_jax.training.step import TrainStep

    config = TransformerConfig(weights="minilm", dtype=dtype)
    reader = encoders.fit(config, "wordnet", "text", [])
    program = TrainStep(
        encoder=config,
        inputs={"ids": (1,), "mask": (1,)},
        vocabulary=reader.vocabulary,
        width=384,
        objective=ContrastiveObjective(DIMS, 2, LossConfig(name="info_nce")),
        optimizer_config=OptimizerConfig(),
        steps=1,
    )
    model, texts = EmbeddingModel(program, program.init(0).model, reader, DIMS, "separate"), glosses()
    model.encode(texts, dim=64)
    started = time.perf_counter()
    model.encode(texts, dim=64)
    return TEXTS / (time.perf_counter() - started)


def theirs_encode(dtype: str, steps: int) -> float:
    import torch

    model, texts = their_model(), glosses()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        return encode_speed(model, texts)


def model_encode(dtype: str, steps: int) -> float:
    import torch

    return encode_speed(their_model().to(getattr(torch, dtype)), glosses())


def encode_speed(model: Any, texts: list[str]) -> float:
    best = 0.0
    for size in (16, 32, 64, 128):  # its best batch size is taken
        model.encode(texts[:256], batch_size=size)
        started = time.perf_counter()
        model.encode(texts, batch_size=size, normalize_embeddings=True, truncate_dim=64)
        best = max(best, TEXTS / (time.perf_counter() - started))
    return best


WORKERS = {
    ("train", "ours"): ours_train,
    ("train", "theirs"): theirs_train,
    ("encode", "ours"): ours_encode,
    ("encode", "theirs"): theirs_encode,
    ("encode", "model"): model_encode,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        what, side, dtype = options.worker
        print(json.dumps(WORKERS[what, side](dtype, options.steps)))
        return
    report: dict[str, Any] = {"cores": os.cpu_count(), "pairs_a_step": PAIRS, "texts": TEXTS}
    for what in ("train", "encode"):
        for dtype in ("float32", "bfloat16"):
            sides = ["ours", "theirs", "model"] if (what, dtype) == ("encode", "bfloat16") else ["ours", "theirs"]
            speed: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side, found in speed.items():
                    found.append(measured(what, side, dtype, "--steps", options.steps))
            best = {side: max(found) for side, found in speed.items()}
            ratios = {side: best["ours"] / best[side] for side in sides[1:]}
            report[f"{what} {dtype}"] = {"per_second": speed, "ratio": ratios}
            others = "".join(f"; {side} {best[side]:.1f}/s, ratio {ratio:.2f}" for side, ratio in ratios.items())
            print(f"{what:<7}{dtype:<9} ours {best['ours']:.1f}/s{others}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
