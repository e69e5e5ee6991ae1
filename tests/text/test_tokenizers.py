"""Preprocessors of texts: tf-idf against scikit-learn, subwords against what training must not depend on."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from mrl_jax.system.errors import UserError
from mrl_jax.text.tokenizers import HAS_UNSPACED, Subwords, TfidfWords

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


# ---- scripts without spaces between words ----------------------------------------------------------------------------

SCRIPTS = {  # a text, and its units
    "Chinese": ("我喜欢足球，ok？", "我 喜 欢 足 球 ok"),
    "Japanese": ("東京のサッカーは楽しい", "東 京 の サッカー は 楽 し い"),
    "half-width katakana": ("ｻｯｶｰ", "サッカー"),
    "Thai": ("ที่เรียนภาษา ๒๕", "ที่ เรี ย น ภา ษา ๒๕"),
    "Lao": ("ພາສາລາວ", "ພາ ສາ ລາ ວ"),
    "Khmer": ("ភាសាខ្មែរ", "ភា សា ខ្ មែ រ"),
    "Burmese": ("မြန်မာစာ", "မြ န် မာ စာ"),
    "rare characters": ("𠀀𪜀", "𠀀 𪜀"),
    "Korean": ("나는 축구를 좋아한다", "나는 축구를 좋아한다"),  # has spaces
    "mixed": ("iPhone手机2号", "iphone 手 机 2 号"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_without_spaces_between_them_are_split(script: str) -> None:
    text, units = SCRIPTS[script]
    words = TfidfWords.fit([text], min_documents=1, max_words=192)
    assert set(words.tokenizer.get_vocab()) - {"[UNK]"} == set(units.split())
    assert words.tokenizer.encode(text).tokens == units.split()


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=5), st.sampled_from(["", "我", "ที่"]))
def test_texts_of_other_scripts_have_the_tokens_that_they_always_had(texts: list[str], other: str) -> None:
    """Also where a text of the training split is in such a script. Without one the tokenizer itself is the same."""
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Split(Regex(r"\w+"), behavior="removed", invert=True)
    spaced = [text for text in ["two words", *texts] if not HAS_UNSPACED.search(normalizer.normalize_str(text))]
    words = TfidfWords.fit([*spaced, other], min_documents=1, max_words=192)
    for text in spaced:
        expected = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
        assert words.tokenizer.encode(text).tokens == expected
    if not other:
        assert words.tokenizer.pre_tokenizer.__getstate__() == splitter.__getstate__()


def test_a_stored_tokenizer_splits_as_it_did(tmp_path: Path) -> None:
    """Both of today and of a time when a sentence without spaces was one word."""
    new = TfidfWords.fit(["我喜欢足球", "我喜欢"], min_documents=1, max_words=192)
    old = TfidfWords.fit(["我喜欢足球", "我喜欢"], min_documents=1, max_words=192)
    content = json.loads(old.tokenizer.to_str())
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][0]
    content["model"]["vocab"] = {"[UNK]": 0, "我喜欢足球": 1, "我喜欢": 2}
    old.tokenizer, old.idf = Tokenizer.from_str(json.dumps(content)), np.ones(3, np.float32)
    for words, tokens in ((new, ["我", "喜", "欢"]), (old, ["我喜欢"])):
        words.save(tmp_path)
        assert TfidfWords.load(tmp_path, max_words=9).tokenizer.encode("我喜欢").tokens == tokens


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
