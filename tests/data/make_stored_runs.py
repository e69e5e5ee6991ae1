"""Made the files beside this one, by the code of the commit that environment.json of the runs names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

TOPICS = ("orbit", "hockey", "kernel", "garden")


def texts(path, count, seed):
    rng = np.random.default_rng(seed)
    with open(path, "w") as file:
        for i in range(count):
            t = i % 4
            words = [f"{TOPICS[t]}{n}" for n in rng.integers(0, 12, rng.integers(1, 5))]
            words += [f"common{n}" for n in rng.integers(0, 12, rng.integers(2, 8))]
            file.write(
                json.dumps({"_id": f"d{i}", "text": " ".join(rng.permutation(words)), "label": TOPICS[t]}) + "\n"
            )


def pairs(path, count, seed):
    rng = np.random.default_rng(seed)
    with open(path, "w") as file:
        for i in range(count):
            t = TOPICS[i % 4]
            a = " ".join([f"{t}{n}" for n in rng.integers(0, 12, 3)] + [f"id{i}"])
            b = " ".join([f"{t}{n}" for n in rng.integers(0, 12, 4)] + [f"id{i}", f"common{rng.integers(12)}"])
            file.write(json.dumps({"anchor": a, "positive": b}) + "\n")


texts("train.jsonl", 160, 0)
texts("test.jsonl", 48, 1)
pairs("pairs_train.jsonl", 96, 2)
pairs("pairs_test.jsonl", 24, 3)
COMMON = [
    "width=8",
    "nesting_dims=[2,4,8]",
    "trainer.steps=40",
    "trainer.batch_size=16",
    "trainer.log_every=5",
    "trainer.evaluations=4",
    "optimizer.learning_rate=0.02",
    "encoder.word_dropout=0.2",
    "results_dir=runs",
]
CLASSES = [
    "data=files",
    "data.train=train.jsonl",
    "data.test=test.jsonl",
    "name=classes",
    "evaluation.cascade=false",
    "arms=[mrl,mrl_e,ff,truncated,pca]",
    "seeds=2",
]
PAIRS = [
    "data=pairs",
    "data.train=pairs_train.jsonl",
    "data.test=pairs_test.jsonl",
    "name=pairs",
    "loss.name=info_nce",
    "arms=[mrl,ff,pca,untuned]",
]
env = dict(os.environ, PYTHONPATH=os.environ["OLD_CODE"])


def run(*words):
    subprocess.run([sys.executable, "-m", "mrl_jax.train", *words], check=True, env=env)


def stopped(*words):
    """The run as a Ctrl-C at step 25 of its second member leaves it."""
    code = f"""
import os, signal, sys
from mrl_jax import train, trainer
report, seen = trainer._Group._report, []
def stop(self, step, window, seconds):
    report(self, step, window, seconds)
    seen.append(step)
    if len(seen) == 13:
        os.kill(os.getpid(), signal.SIGINT)
trainer._Group._report = stop
sys.exit(train.main({list(words)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 130


run(*CLASSES, *COMMON, "run=whole")
run(*PAIRS, *COMMON, "run=whole")
stopped(*CLASSES, *COMMON, "run=stopped")
stopped(*PAIRS, *COMMON, "run=stopped")
subprocess.run(
    [sys.executable, "-m", "mrl_jax.search", "build", "runs/pairs/whole", "test.jsonl", "--index", "exact.index"],
    check=True,
    env=env,
)
subprocess.run(
    [
        sys.executable,
        "-m",
        "mrl_jax.search",
        "build",
        "runs/classes/whole",
        "test.jsonl",
        "--index",
        "hnsw.index",
        "--kind",
        "faiss-hnsw",
    ],
    check=True,
    env=env,
)
for place in ("exact.index", "hnsw.index"):
    out = subprocess.run(
        [sys.executable, "-m", "mrl_jax.search", "query", place, "orbit1 orbit4 common3", "--k", "5"],
        check=True,
        env=env,
        capture_output=True,
        text=True,
    ).stdout
    Path(place + ".txt").write_text(out)
