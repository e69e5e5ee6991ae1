"""Preprocessors of texts: tf-idf against scikit-learn, subwords against what training must not depend on."""

from pathlib import Path

import numpy as np
import pytest

from mrl_jax.errors import UserError
from mrl_jax.text.tokenizers import Subwords, TfidfWords

TEXTS = ["the cat sat on the mat", "The CAT ran", "a dog sat", "dogs and cats", "the the the mat"]


def test_weights_are_those_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    oracle = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=r"\w+").fit(TEXTS)
    words = TfidfWords.fit(TEXTS, min_documents=2, max_words=192)
    queries = [*TEXTS, "cat mat the the unseen", ""]
    expected = oracle.transform(queries).toarray()
    arrays = words(queries)
    dense = np.zeros((len(queries), words.vocabulary))
    np.put_along_axis(dense, arrays["ids"], arrays["weights"], axis=1)
    names = [words.tokenizer.token_to_id(word) for word in oracle.get_feature_names_out()]
    np.testing.assert_allclose(dense[:, names], expected, atol=1e-6)


def test_vocabulary_does_not_depend_on_the_order_of_the_texts() -> None:
    one, other = (TfidfWords.fit(texts, min_documents=2, max_words=192) for texts in (TEXTS, TEXTS[::-1]))
    assert one.tokenizer.to_str() == other.tokenizer.to_str()
    np.testing.assert_array_equal(one.idf, other.idf)


def test_the_heaviest_words_are_read_and_a_saved_preprocessor_reads_alike(tmp_path: Path) -> None:
    words = TfidfWords.fit(TEXTS, min_documents=1, max_words=3)
    whole = TfidfWords.fit(TEXTS, min_documents=1, max_words=192)(TEXTS[:1])
    chosen = set(words(TEXTS[:1])["ids"][0].tolist())
    order = np.argsort(-whole["weights"][0], kind="stable")
    assert chosen == set(whole["ids"][0][order[:3]].tolist())
    words.save(tmp_path)
    again = TfidfWords.load(tmp_path, max_words=3)
    for name, array in words(TEXTS).items():
        np.testing.assert_array_equal(array, again(TEXTS)[name])


def test_texts_without_a_word_in_common_are_refused() -> None:
    with pytest.raises(UserError, match=r"encoder\.min_documents=2 of the 2 training texts"):
        TfidfWords.fit(["one two", "three four"], min_documents=2, max_words=9)


def test_subwords_do_not_depend_on_the_order_of_the_texts_and_spell_every_text() -> None:
    one, other = (Subwords.fit(texts, vocabulary=300, max_length=64) for texts in (TEXTS, TEXTS[::-1]))
    assert one.tokenizer.to_str() == other.tokenizer.to_str()
    assert 256 < one.vocabulary <= 300
    for text in ("the cat sat", "unseen \u0378 \U0001f600"):
        (ids,) = one([text])["ids"]
        assert one.tokenizer.decode(ids.tolist()).strip() == text


def test_texts_that_are_truncated_are_counted_and_padding_is_masked() -> None:
    subwords = Subwords.fit(TEXTS, vocabulary=257, max_length=6)  # hardly more than single bytes
    arrays = subwords(["cat", "cats and dogs", ""])
    assert arrays["ids"].shape == arrays["mask"].shape == (3, 6)
    assert arrays["mask"].sum(axis=1).tolist() == [4, 6, 0]
    assert not arrays["ids"][arrays["mask"] == 0].any()
    assert subwords.cut == 1
    subwords(["cat"])
    assert subwords.cut == 0


@pytest.mark.parametrize("max_length", [6, None])
def test_saved_subwords_read_alike(max_length: int | None, tmp_path: Path) -> None:
    subwords = Subwords.fit(TEXTS, vocabulary=270, max_length=6)
    subwords.save(tmp_path)
    again = Subwords.load(tmp_path, max_length=max_length)
    for name, array in subwords(TEXTS).items():
        np.testing.assert_array_equal(array, again(TEXTS)[name])
