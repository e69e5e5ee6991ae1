"""Pretrained weights as they are: embedded, indexed and searched by the commands that take runs."""

from pathlib import Path

import model_folders
import numpy as np
import pytest
from helpers import write_table

from mrl_jax import embed
from mrl_jax.model.pretrained import pretrained
from mrl_jax.search.__main__ import main as search
from mrl_jax.search.service.answers import Answers

TEXTS = ["the quick fox", "a lazy dog fell", "stocks fell", "cafe resume", "fox dog x"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 16 dims, texts, and an index of them."""
    folder = tmp_path_factory.mktemp("untuned")
    model_folders.make(folder / "model")
    write_table(folder / "texts.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)])
    words = [str(folder / "model"), str(folder / "texts.jsonl"), "--prefix", "3"]
    assert search(["build", *words, "--index", str(folder / "index")]) == 0
    return folder


def test_embed_writes_the_vectors_of_the_weights(place: Path) -> None:
    out = place / "z.npy"
    assert embed.main([str(place / "model"), str(place / "texts.jsonl"), "--dim", "5", "--out", str(out)]) == 0
    np.testing.assert_allclose(np.load(out), pretrained(str(place / "model")).encode(TEXTS, 5), atol=1e-6)


def test_an_index_is_searched_by_the_weights_that_made_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(["query", str(place / "index"), "fox dog x", "--k", "5", "--plan", "3:5"]) == 0
    z = pretrained(str(place / "model")).encode(TEXTS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [f"d{i}" for i in np.argsort(-(z @ z[4]), kind="stable")]
    answers = Answers(str(place / "index"))
    assert answers.facts.changes() == []
    assert (answers.facts.dims, answers.facts.classes) == ((3, 8, 16), ())
    (place / "model" / "config.json").touch()
    assert [one for one in answers.facts.changes() if "was changed on disk" in one]
    answers.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "--seed", "1"], "--seed=1 chooses a model of a trained run"),
        (["MODEL", "--prefix", "17"], "--prefix=17 is not allowed; one of 8, 16"),
        (["/no/such/model"], "/no/such/model is no model: there is no such folder"),
    ],
)
def test_a_mistake_is_one_sentence(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, *options = words
    model = model.replace("MODEL", str(place / "model"))
    new = str(place / "new")
    assert search(["build", model, str(place / "texts.jsonl"), "--index", new, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path(new).exists()
