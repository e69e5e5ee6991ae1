"""The STS benchmark with sentence-transformers' MatryoshkaLoss, from the same weights, data, batch and number of steps.

    python benchmarks/stsb.py RUN [--seeds 3] [--dtype bfloat16] [--json FILE]

RUN is a finished run of `python -m mrl_jax.train +experiment=stsb_minilm`: its configuration says what the other side
is trained with (CoSENTLoss under MatryoshkaLoss, AdamW, warm-up, cosine schedule, dropout as in the weights). Prints
the test Spearman correlation at every dim for both, and their seconds a step. On that side the weights at the end of
training are scored; ours are those of the best validation.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import CoSENTLoss, MatryoshkaLoss

from mrl_jax import config as configuration
from mrl_jax import data, runs
from mrl_jax.data import Pairs
from mrl_jax.encoders import huggingface


def as_sentence_transformer(weights: str, max_length: int) -> SentenceTransformer:
    """The pretrained folder with the pooling that it is published with."""
    from sentence_transformers import models

    transformer = models.Transformer(str(huggingface.resolve(weights)), max_seq_length=max_length)
    return SentenceTransformer(modules=[transformer, models.Pooling(384, pooling_mode="mean")], device="cpu")


def spearman(model: SentenceTransformer, pairs: Pairs, dims: list[int]) -> dict[int, float]:
    z = model.encode(list(pairs.table), batch_size=64, show_progress_bar=False)
    a, b = z[pairs.columns[:, 0]], z[pairs.columns[:, 1]]

    def cosine(m: int) -> np.ndarray:
        x, y = a[:, :m], b[:, :m]
        return np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)

    return {m: float(spearmanr(cosine(m), pairs.scores)[0]) for m in dims}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--steps", type=int, help="fewer, for a trial")
    options = parser.parse_args()
    run = runs.find(options.run)
    config = configuration.from_yaml(run / "config.yaml")
    dataset = data.load(config.data)
    train, test = dataset.train, dataset.test
    dims, batch = list(config.nesting_dims), config.trainer.batch_size
    total = options.steps or config.trainer.total_steps(len(train))
    rows = Dataset.from_dict(
        {
            "sentence1": [train.table[i] for i in train.columns[:, 0]],
            "sentence2": [train.table[i] for i in train.columns[:, 1]],
            "score": [float(s) / 5 for s in train.scores],
        }
    )
    theirs, seconds = [], []
    for seed in range(options.seeds):
        model = as_sentence_transformer(config.encoder.weights, config.encoder.max_length)
        loss = MatryoshkaLoss(model, CoSENTLoss(model, scale=1 / config.loss.temperature), dims[::-1])
        folder = tempfile.mkdtemp()
        arguments = SentenceTransformerTrainingArguments(
            folder,
            max_steps=total,
            per_device_train_batch_size=batch,
            learning_rate=config.optimizer.learning_rate,
            warmup_steps=round(config.optimizer.warmup * total),
            weight_decay=config.optimizer.weight_decay,
            lr_scheduler_type="cosine",
            max_grad_norm=config.optimizer.clip_norm or 0.0,
            bf16=options.dtype == "bfloat16",
            use_cpu=True,
            seed=seed,
            save_strategy="no",
            logging_steps=total,
            report_to="none",
        )
        trainer = SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss)
        started = time.perf_counter()
        trainer.train()
        seconds.append((time.perf_counter() - started) / total)
        theirs.append(spearman(model, test, dims))
        print(f"seed {seed}: {seconds[-1]:.3f} s a step; {theirs[-1]}", flush=True)
        shutil.rmtree(folder)
    ours = {m: [] for m in dims}
    for row in runs.read_rows(run / "evaluation.csv"):
        if (row.arm, row.split, row.metric) == ("mrl", "test", "spearman") and row.dim in ours:
            ours[row.dim].append(row.value)
    print(f"{'dim':>5}{'ours':>18}{'theirs':>18}")
    for m in dims:
        cells = [
            f"{statistics.mean(v):.4f} ± {np.std(v, ddof=min(1, len(v) - 1)):.4f}"
            for v in (ours[m], [t[m] for t in theirs])
        ]
        print(f"{m:>5}" + "".join(f"{cell:>18}" for cell in cells))
    result = {
        "run": run.name,
        "steps": total,
        "batch_size": batch,
        "dtype": options.dtype,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "ours": {str(m): ours[m] for m in dims},
        "theirs": {str(m): [t[m] for t in theirs] for m in dims},
        "theirs_seconds_a_step": seconds,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
