"""Runs of words and characters: the same ones as scikit-learn counts, in few buckets, and the same after loading."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax.system.errors import UserError
from mrl_jax.text.ngrams import BUCKETS, buckets
from mrl_jax.text.tokenizers import TfidfWords

TEXTS = ["to be, or not to be", "to be or to do", "do be do", "Not here; or there", "", "北京 to do 北京市"]


@pytest.mark.parametrize(
    ("units", "longest", "settings"),
    [
        ("words", 2, {"token_pattern": r"\w+", "ngram_range": (1, 2)}),
        ("words", 3, {"token_pattern": r"\w+", "ngram_range": (1, 3)}),
        ("characters", 4, {"analyzer": "char_wb", "ngram_range": (1, 4)}),
    ],
)
@pytest.mark.parametrize("fewest", [1, 2])
def test_runs_are_counted_as_scikit_learn_counts_them(
    units: str, longest: int, settings: dict[str, object], fewest: int
) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [text for text in TEXTS if "北" not in text or units == "characters"]
    texts = [re.sub(r"\W+", " ", text) for text in texts]  # punctuation is a character to scikit-learn
    oracle = TfidfVectorizer(sublinear_tf=True, min_df=fewest, **settings).fit(texts)
    analyse = oracle.build_analyzer()
    documents = Counter(term for text in texts for term in set(analyse(text)))
    reader = TfidfWords.fit(texts, min_documents=fewest, max_words=10**4, units=units, ngrams=longest)

    def is_run(term: str) -> bool:
        long = " " in term if units == "words" else len(term) > 1
        return long and documents[term] >= max(2, fewest)

    assert len(reader.runs) == sum(map(is_run, documents))
    for text in texts:
        arrays = reader([text])
        found = arrays["ids"][0][arrays["weights"][0] > 0]
        runs = found[found >= reader.tokenizer.get_vocab_size()]
        assert len(runs) == sum(map(is_run, set(analyse(text))))
    if units == "words" and fewest == 2:  # all of them, with their weights
        for text in texts:
            weights = reader([text])["weights"][0]
            np.testing.assert_allclose(np.sort(weights[weights > 0]), np.sort(oracle.transform([text]).data), rtol=1e-5)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=8), st.integers(2, 8))
def test_a_run_has_one_bucket_wherever_it_stands(ids: list[int], n: int) -> None:
    n = min(n, len(ids))
    whole, part = np.array([7, *ids, 9], np.uint32), np.array(ids[:n], np.uint32)
    assert buckets(whole, n)[1] == buckets(part, n)[0] < BUCKETS
    expected = n
    for i in ids[:n]:
        expected = (expected * 16_777_619 + i) % 2**32
    assert buckets(part, n)[0] == (expected * 2_654_435_769 % 2**32) >> 12


def test_characters_of_a_word_that_is_not_known_are(tmp_path: Path) -> None:
    reader = TfidfWords.fit(["Springfield", "Greenfield"], min_documents=1, max_words=99, units="characters", ngrams=5)
    assert np.count_nonzero(reader(["Sheffield"])["weights"]) > 10
    reader.save(tmp_path)
    again = TfidfWords.load(tmp_path, max_words=99, ngrams=5)
    for name, array in reader(["Sheffield"]).items():
        np.testing.assert_array_equal(array, again(["Sheffield"])[name])


@pytest.mark.parametrize("content", ["{}", "[2, 1]", "[-1]", f"[{BUCKETS}]", "[true]", "[1, 1]", ""])
def test_a_damaged_file_of_runs_is_one_sentence(content: str, tmp_path: Path) -> None:
    TfidfWords.fit(TEXTS, min_documents=1, max_words=9, ngrams=2).save(tmp_path)
    (tmp_path / "ngrams.json").write_text(content)
    with pytest.raises(UserError, match=r"(ngrams|idf)\.json"):
        TfidfWords.load(tmp_path, max_words=9, ngrams=2)


def test_a_text_of_unknown_characters_has_no_weights() -> None:
    reader = TfidfWords.fit(["to be or not", "to do"], min_documents=1, max_words=9, units="characters", ngrams=3)
    weights = reader(["你好世界", " ", "to", ""])["weights"]
    assert (weights > 0).any(axis=1).tolist() == [False, False, True, False]
