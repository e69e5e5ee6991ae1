"""Texts per second of a static embedding: ours and sentence-transformers' StaticEmbedding from one exported folder.

    python benchmarks/static.py [--texts 50000] [--rounds 5] [--json FILE]

The table is wordllama's, 32,000 × 256; the texts are distinct WordNet glosses. Both sides tokenise, embed, truncate to
64 dims and normalise. They take turns, and each has the fastest of its batch sizes. On a machine that is busy with
other work, processor time says more than the clock. Also checks that both give the same vectors.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from sentence_transformers import SentenceTransformer

from mrl_jax import data, encoders
from mrl_jax.config import Config
from mrl_jax.data import DataConfig
from mrl_jax.encoders.static import StaticConfig
from mrl_jax.export import sentence_transformers
from mrl_jax.model import EmbeddingModel
from mrl_jax.tasks import train_step

BATCH_SIZES = (256, 1024, 4096)
DIM, WIDTH = 64, 256


def wordllama() -> EmbeddingModel:
    """The pretrained table as a model."""
    encoder = StaticConfig(weights="wordllama")
    reader = encoders.fit(encoder, "made", "text", [])
    config = Config(DataConfig("wordnet"), encoder, "made", WIDTH, (DIM, WIDTH), ("mrl",), 1)
    inputs = {"inputs": {"ids": (1,), "weights": (1,)}, "vocabulary": reader.vocabulary, "classes": ["a", "b"]}
    program = train_step(config, inputs)
    return EmbeddingModel(program, program.init(0).model, reader, (DIM, WIDTH), "separate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    texts = sorted(set(data.load(DataConfig("wordnet", task="classes")).train.inputs))[: options.texts]
    model = wordllama()
    with tempfile.TemporaryDirectory() as folder:
        sentence_transformers.write(model, Path(folder), "x")
        theirs = SentenceTransformer(folder, device="cpu", truncate_dim=DIM)
    some = texts[:1000]
    difference = np.abs(model.encode(some, DIM) - theirs.encode(some, normalize_embeddings=True)).max()
    print(f"largest difference of a coordinate {difference:.1e}")

    def ours(batch_size: int) -> Any:
        return model.encode(texts, DIM, batch_size=batch_size, show_progress=False)

    def other(batch_size: int) -> Any:
        return theirs.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)

    def tokens(batch_size: int) -> Any:
        del batch_size
        return model.reader(texts)

    sides = {"ours": ours, "sentence-transformers": other, "tokens alone": tokens}
    clock: dict[str, dict[int, list[float]]] = {side: {size: [] for size in BATCH_SIZES} for side in sides}
    processor: dict[str, dict[int, list[float]]] = {side: {size: [] for size in BATCH_SIZES} for side in sides}
    for run in sides.values():
        for size in BATCH_SIZES:
            run(size)  # compiles
    for _ in range(options.rounds):
        for side, run in sides.items():
            for size in BATCH_SIZES:
                start, used = time.perf_counter(), time.process_time()
                run(size)
                clock[side][size].append(time.perf_counter() - start)
                processor[side][size].append(time.process_time() - used)
    rows = {}
    for side in sides:
        size = min(BATCH_SIZES, key=lambda size: median(processor[side][size]))
        rows[side] = {
            "batch_size": size,
            "texts_per_second": len(texts) / median(clock[side][size]),
            "texts_per_processor_second": len(texts) / median(processor[side][size]),
        }
        print(
            f"{side:24} batch {size:5}  {rows[side]['texts_per_second']:9,.0f} texts/s  "
            f"{rows[side]['texts_per_processor_second']:9,.0f} texts per second of one core"
        )
    ratios = {
        key: rows["ours"][key] / rows["sentence-transformers"][key]
        for key in ("texts_per_second", "texts_per_processor_second")
    }
    print(f"ours ÷ sentence-transformers: {ratios['texts_per_second']:.2f} by the clock, "
          f"{ratios['texts_per_processor_second']:.2f} by processor time")  # fmt: skip
    result = {
        "texts": len(texts),
        "characters": float(np.mean([len(text) for text in texts])),
        "largest_difference": float(difference),
        "sides": rows,
        "ratios": ratios,
        "clock": clock,
        "processor": processor,
        "load": os.getloadavg(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
