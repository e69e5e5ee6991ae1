"""What tests share: files of rows, a tiny transformer, pairs of texts, and how runs are compared or interrupted."""

import csv
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mrl_jax
from mrl_jax import train
from mrl_jax.runs import checkpoint

WORDS = [f"{a}{b}" for a in "bcdfgklmnprst" for b in ("ado", "emi", "ilu", "oka", "upo")]
TRANSFORMER = [
    *("encoder=transformer", "encoder.layers=1", "encoder.hidden=32", "encoder.heads=2", "encoder.intermediate=32"),
    *("encoder.vocabulary=300", "encoder.max_length=32", "width=32", "nesting_dims=[8,32]"),
]


def script(experiment: str, name: str = "analyse.py") -> Any:
    """A script of an experiment, as a module."""
    path = Path(__file__).parents[1] / "experiments" / experiment / name
    spec = importlib.util.spec_from_file_location(f"{experiment}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_table(path: Path, rows: list[dict]) -> str:
    """Write rows in the format of the suffix."""
    match path.suffix:
        case ".jsonl" | ".ndjson":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case suffix:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
    return str(path)


def random_pair(rng: np.random.Generator) -> dict[str, str]:
    """Two words, and the same in a language that spells everything backwards: no word is on both sides."""
    words = rng.choice(WORDS[:40], 2, replace=False)
    return {"anchor": f"what is {' '.join(words)}", "positive": " ".join(word[::-1] for word in words)}


def run_digests(run: Path) -> dict[str, str]:
    """What a run came to: its parameters, table, log without speeds, and what it says of its data."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in log:
        line.pop("examples_per_second", None)
    return {
        "parameters": mrl_jax.load(run).fingerprint,
        "evaluation": (run / "evaluation.csv").read_text(),
        "log": json.dumps(log),
        "data": (run / "dataset.json").read_text(),
        # Of two towers it is that of the texts.
        "tokenizer": hashlib.sha256(next(run.glob("**/tokenizer.json")).read_bytes()).hexdigest(),
    }


def interrupt_after_two_checkpoints(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, dict[str, int]]]:
    """Start a run that ends there; the step of each checkpoint and where its reading stood."""
    saved, save = [], checkpoint.save

    def save_and_interrupt(directory: Path, step: int, tree: object, meta: dict, **options: int) -> Path:
        path = save(directory, step, tree, meta, **options)
        saved.append((step, meta["reading"]))
        if len(saved) == 2:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save_and_interrupt)
        assert train.main(arguments) == 130
    return saved
