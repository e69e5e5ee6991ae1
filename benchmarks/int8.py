"""What 8 bits cost an exported model: the scores of a run's test pairs at each dim, and the time, in float32 and int8.

    python benchmarks/int8.py RUN [--json FILE]

RUN is a finished run of pairs of texts with scores, such as `python -m mrl_jax.train +experiment=stsb_minilm`. The
files are those of `--to onnx` and `--to onnx-int8`, run by onnxruntime.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import mrl_jax
from mrl_jax import config as configuration
from mrl_jax import data, evaluate, export, runs
from mrl_jax.tasks.description import put_prompts

BATCH_TEXTS = 32


def embed(folder: Path, texts: list[str]) -> np.ndarray:
    """The whole embeddings of texts, in batches of similar length."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    order, parts = np.argsort([len(text) for text in texts], kind="stable"), []
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = tokenizer.encode_batch([texts[i] for i in order[start : start + BATCH_TEXTS]])
        ids, mask = (np.array([getattr(one, key) for one in batch], np.int64) for key in ("ids", "attention_mask"))
        parts.append(session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0])
    return np.concatenate(parts)[np.argsort(order)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    config = configuration.from_yaml(runs.find(options.run) / "config.yaml")
    test = put_prompts(config, data.load(config.data)).test
    dims, texts = mrl_jax.load(options.run).dims, list(test.table)
    results = {}
    for to in ("onnx", "onnx-int8"):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "exported"
            print(export.export(options.run, to, folder))
            started = time.process_time()
            z = embed(folder, texts)
            results[to] = {
                "bytes": (folder / "model.onnx").stat().st_size,
                "processor_seconds": time.process_time() - started,
                "spearman": {
                    score.dim: score.value
                    for score in evaluate.similarity(z[test.columns[:, 0]], z[test.columns[:, 1]], test.scores, dims)
                    if score.metric == "spearman"
                },
            }
    print(f"{'':>12}{'MB':>8}{'CPU s':>8}" + "".join(f"{dim:>9}" for dim in dims))
    for to, found in results.items():
        scores = "".join(f"{100 * value:>9.2f}" for value in found["spearman"].values())
        print(f"{to:>12}{found['bytes'] / 1e6:>8.1f}{found['processor_seconds']:>8.1f}{scores}")
    if options.json:
        about = {"texts": len(texts), "cores": os.cpu_count(), "onnxruntime": onnxruntime.__version__}
        options.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
