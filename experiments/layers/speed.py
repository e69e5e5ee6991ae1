"""Size and speed of exported parts of the runs of experiments/layers, as speed.csv: ONNX files on one CPU thread.

python experiments/layers/speed.py results
"""

import csv
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from mrl_jax.export import export

HERE = Path(__file__).parent
PARTS = {"layers": (1, 2, 3, 4), "hidden": (32, 64, 128, 256)}
BATCH, TOKENS, REPEATS = 64, 48, 20


def measure(run: Path, axis: str, size: int) -> tuple[int, float]:
    """Bytes of model.onnx, and the least time of a batch in ms."""
    with tempfile.TemporaryDirectory() as folder:
        export(run, "onnx", Path(folder) / "part", **{axis: size})
        path = Path(folder) / "part" / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        ids = np.random.default_rng(0).integers(5, 4000, (BATCH, TOKENS))
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        times = []
        for _ in range(REPEATS):
            started = time.process_time()  # of this process: others on the machine do not count
            session.run(None, feed)
            times.append(time.process_time() - started)
        return path.stat().st_size, 1e3 * min(times)


def main() -> None:
    with (HERE / "speed.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["axis", "size", "bytes", "ms_per_batch"])
        for axis, sizes in PARTS.items():
            for size in sizes:
                count, milliseconds = measure(Path(sys.argv[1]) / axis / "nested", axis, size)
                writer.writerow([axis, size, count, f"{milliseconds:.1f}"])


if __name__ == "__main__":
    main()
