"""Examples that repeat one of train are counted, whatever their case and punctuation."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import write_table
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import train
from mrl_jax.data import repeats
from mrl_jax.data.base import Dataset, Split


def dataset(**parts: list[str] | np.ndarray) -> Dataset:
    splits = {name: Split(inputs, np.zeros(len(inputs), np.int32)) for name, inputs in parts.items()}
    return Dataset("made", "text", ("a", "b"), **splits)


def test_texts_of_the_same_words_are_the_same() -> None:
    made = dataset(
        train=["The fox.", "the  FOX", "a dog", "…", "...", "Straße"],
        validation=["a dog!", "the dog", "STRASSE"],
        test=["fox the", "...", "a-dog"],
    )
    assert repeats.count(made) == {"train": 1, "validation": 2, "test": 2}
    assert repeats.sentence(repeats.count(made), made) == (
        "1 of 6 train examples repeat others; 2 of 3 validation and 2 of 3 test examples stand in train, too "
        "(case and punctuation aside)"
    )
    alone = dataset(train=["a"], validation=["b"], test=["c"])
    assert repeats.sentence(repeats.count(alone), alone) is None


WORDS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=2).map(tuple), max_size=8)


@given(train=WORDS, validation=WORDS, test=WORDS, seed=st.integers(0, 99))
def test_counts_are_those_of_a_loop(train: list, validation: list, test: list, seed: int) -> None:
    rng = np.random.default_rng(seed)
    written = [lambda words: " ".join(words), lambda words: ", ".join(words).upper() + "!"]
    parts = {"train": train, "validation": validation, "test": test}
    made = dataset(**{k: [written[rng.integers(2)](words) for words in part] for k, part in parts.items()})
    known = set(train)
    wanted = {"train": len(train) - len(known)} | {k: sum(t in known for t in parts[k]) for k in ("validation", "test")}
    assert repeats.count(made) == wanted


def test_features_are_the_same_if_all_numbers_are() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    made = dataset(train=x[[0, 1, 0]], validation=x[[1, 2]], test=x[2:] + np.float32(1e-6))
    assert repeats.count(made) == {"train": 1, "validation": 1, "test": 0}


def test_a_run_says_and_keeps_the_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"{word} {i % 9}", "label": word} for i in range(24) for word in ("fox", "dog")]
    file = write_table(tmp_path / "rows.jsonl", rows)
    words = ["data=files", f"data.train={file}", f"data.test={file}", f"results_dir={tmp_path}", "name=made", "run=one"]
    words += ["recipe=none", "trainer.steps=2", "encoder.min_documents=1", "evaluation.refit=null"]
    assert train.main([*words, "width=4", "nesting_dims=[2,4]", "evaluation.baseline=none"]) == 0
    assert json.loads((tmp_path / "made" / "one" / "repeats.json").read_text())["test"] == 48
    assert "48 of 48 test examples stand in train, too" in capsys.readouterr().err
