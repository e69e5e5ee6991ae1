"""Damaged files of every kind: each reader answers, or says in one sentence what is wrong. See `hostile`."""

import random
from pathlib import Path

import pytest
from hostile import READERS, damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrl_jax.system.errors import MAX_MESSAGE_CHARACTERS, UserError

pytestmark = pytest.mark.slow

MAY_BE_EMPTY = ("metrics.jsonl", "evaluation.csv", "environment.json")
# Those that take longer than a millisecond get fewer.
EXAMPLES = {"run": 4, "report": 8, "plots": 2, "overrides": 4, "checkpoint": 8, "index": 12, "faiss": 8, "config": 20}


@pytest.mark.parametrize("name", READERS)
def test_what_is_damaged_is_read_or_refused_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRL_JAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sample"
    folder.mkdir()
    reader = READERS[name]()
    files = reader.make(folder)
    reader.read(folder)
    valid = {file: (folder / file).read_bytes() for file in files}

    @settings(max_examples=EXAMPLES.get(name, 40), suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(files), st.randoms(use_true_random=False))
    def check(file: str, rng: random.Random) -> None:
        (folder / file).write_bytes(damage(valid[file], rng))
        said = "an answer"
        try:
            reader.read(folder)
        except UserError as error:
            said = str(error)
        finally:
            (folder / file).write_bytes(valid[file])
            for journal in folder.rglob("*.sqlite-*"):
                journal.unlink()
        assert said.isprintable()
        assert 8 < len(said) < 12 * MAX_MESSAGE_CHARACTERS

    check()


@pytest.mark.parametrize("name", READERS)
def test_an_empty_file_is_refused_in_a_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRL_JAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sample"
    folder.mkdir()
    reader = READERS[name]()
    for file in reader.make(folder)[:3]:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(b"")
        if name in ("overrides", "faiss", "pictures", "corpus") or file.endswith(MAY_BE_EMPTY):
            (folder / file).write_bytes(content)  # nothing is an answer, or it is made anew
            continue
        with pytest.raises(UserError):
            reader.read(folder)
        (folder / file).write_bytes(content)
