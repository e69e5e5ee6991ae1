"""Which tokens are hidden: how many, whole words, never special ones; and what they become."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mrl_jax.system.errors import UserError
from mrl_jax.text import masking
from mrl_jax.text.masking import Vocabulary
from mrl_jax.text.tokenizers import Subwords

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "goal", "##ie", "##s", "stop", "##ped", "shot", ","]


def word_pieces(without: str = "") -> Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens([piece for piece in PIECES[:5] if piece != without])
    return tokenizer


def test_words_of_word_pieces_are_a_token_and_the_pieces_after_it() -> None:
    tokenizer, texts = word_pieces(), ["goalies stopped , shots", "shot", ""]
    numbers = masking.word_numbers(tokenizer, texts, 10)
    for text, row in zip(texts, numbers, strict=True):
        tokens = tokenizer.encode(text).tokens
        begins = [not token.startswith("##") for token in tokens]
        assert row[: len(tokens)].tolist() == (np.cumsum(begins) - 1).tolist()
    assert tokenizer.encode(texts[0]).tokens == [
        *("[CLS]", "goal", "##ie", "##s", "stop", "##ped", ",", "shot", "##s", "[SEP]"),
    ]


def test_words_of_our_own_tokenizer_are_split_at_spaces() -> None:
    reader = Subwords.fit(["the goalie stopped"], vocabulary=258, max_length=64, mask_token=True)  # bytes
    (numbers,) = masking.word_numbers(reader.tokenizer, ["the goalie"], 11)
    assert numbers.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]  # a space belongs to the word after it


def test_our_own_vocabulary_has_a_mask_token_where_it_is_asked_for() -> None:
    reader = Subwords.fit(["a b"], vocabulary=258, max_length=8, mask_token=True)
    vocabulary = Vocabulary.of(reader.tokenizer, "this run")
    assert vocabulary.mask == 1
    assert not vocabulary.is_ordinary[:2].any()
    plain = Subwords.fit(["a b"], vocabulary=258, max_length=8)
    with pytest.raises(
        UserError, match=r"needs a mask token, \[MASK\] or <mask>, which the vocabulary of this run lac"
    ):
        Vocabulary.of(plain.tokenizer, "this run")


def test_special_tokens_are_neither_hidden_nor_put_in_place_of_others() -> None:
    vocabulary = Vocabulary.of(word_pieces(), "x")
    assert vocabulary.mask == 4
    assert vocabulary.ordinary.tolist() == list(range(5, len(PIECES)))
    unmarked = Vocabulary.of(word_pieces(without="[MASK]"), "x")  # not marked as special, and still what hides
    assert unmarked.ordinary.tolist() == list(range(5, len(PIECES)))


@given(st.integers(0, 2**32), st.booleans())
def test_as_many_tokens_are_chosen_as_asked_for_and_no_others_than_allowed(seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    allowed = rng.random((4, 12)) < 0.7
    words = np.cumsum(rng.random((4, 12)) < 0.5, axis=1) if whole else None
    wanted, coins = rng.random(4) * allowed.sum(axis=1), rng.random(4)
    chosen, _ = masking.choose(allowed, rng.random((4, 12)), wanted, coins, words)
    assert not (chosen & ~allowed).any()
    if words is None:
        assert (np.abs(chosen.sum(axis=1) - wanted) < 1).all()
        return
    for row, may, numbers, count in zip(chosen, allowed, words, wanted, strict=True):
        runs = np.cumsum(np.concatenate([[1], (numbers[1:] != numbers[:-1]) | ~may[1:] | ~may[:-1]]))
        sizes = {run: (row[runs == run].sum(), (runs == run).sum()) for run in np.unique(runs)}
        assert all(hidden in (0, size) for hidden, size in sizes.values())  # of a word all tokens or none
        taken = [size for hidden, size in sizes.values() if hidden]
        assert not taken or sum(taken) - max(taken) < count
        assert abs(sum(taken) - count) < max(size for _, size in sizes.values())


@pytest.mark.parametrize("whole", [False, True])
def test_every_token_is_hidden_equally_often_and_the_share_is_the_rate(whole: bool) -> None:
    rng = np.random.default_rng(0)
    n, length = 20_000, 20
    words = np.repeat(np.arange(5), 4)[None].repeat(n, axis=0) if whole else None
    wanted = np.full(n, 0.15 * length + 0.4)
    chosen, _ = masking.choose(np.ones((n, length), bool), rng.random((n, length)), wanted, rng.random(n), words)
    shares = chosen.mean(axis=0)
    assert shares.mean() == pytest.approx(0.17, abs=0.002)
    assert np.abs(shares - shares.mean()).max() < 0.012


def test_of_the_chosen_tokens_eight_in_ten_are_masked_one_is_random_and_one_stays() -> None:
    vocabulary = Vocabulary.of(word_pieces(), "x")
    ids = np.full(50_000, 7, np.int32)
    hidden = masking.replace(ids, np.random.default_rng(0).random((50_000, 2)), vocabulary)
    assert (hidden == vocabulary.mask).mean() == pytest.approx(0.8, abs=0.01)
    assert (hidden == 7).mean() == pytest.approx(0.1 + 0.1 / 7, abs=0.01)
    counts = np.bincount(hidden, minlength=len(PIECES))
    assert not counts[:4].any()
    others = [count for i, count in enumerate(counts[5:], 5) if i != 7]
    assert min(others) > 0.1 / 7 * 50_000 * 0.85
