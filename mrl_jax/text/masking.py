"""Which tokens of a text are hidden, and by what: the corruption of masked language modelling.

Of the n tokens of a text that may be hidden (all but special ones), a share `rate` is chosen at random; of these

    80 %  become the mask token, 10 % a random token, 10 % stay as they are      (Devlin et al. 2019, arXiv:1810.04805)

and all of them are to be predicted. With whole words, words are chosen and all of their tokens with them. Everything is
a function of uniform random numbers that the caller draws, so that the same numbers hide the same tokens.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mrl_jax.system.errors import UserError
from mrl_jax.text import untrusted

MASK_TOKENS = ("[MASK]", "<mask>")
MASKED, RANDOM = 0.8, 0.1  # shares of the chosen tokens that become the mask token, or a random one
NUMBERS = 3  # random numbers per token: which is chosen, what becomes of it, by which token it is replaced


@dataclass(frozen=True)
class Vocabulary:
    """What a vocabulary has for masking."""

    mask: int  # id of the mask token
    ordinary: np.ndarray  # int32, the ids of tokens that are not special, ascending
    is_ordinary: np.ndarray  # bool [V]

    @classmethod
    def of(cls, tokenizer: Tokenizer, name: str) -> "Vocabulary":
        """That of a tokenizer; `name` says whose it is. Raises `UserError` where it has no mask token."""
        known = tokenizer.get_vocab()
        mask = next((known[token] for token in MASK_TOKENS if token in known), None)
        if mask is None:
            raise UserError(
                f"loss.name=mlm needs a mask token, {' or '.join(MASK_TOKENS)}, which the vocabulary of {name} lacks; "
                "use weights of a masked language model, or encoder.weights=null"
            )
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        is_ordinary = np.zeros(1 + max(known.values()), bool)
        is_ordinary[[number for number in known.values() if number not in {*special, mask}]] = True
        return cls(mask, np.flatnonzero(is_ordinary).astype(np.int32), is_ordinary)


def word_numbers(tokenizer: Tokenizer, texts: Any, length: int) -> np.ndarray:
    """The number of each token's word in its text, ascending from 0, int32 [n, length] of n texts. Special tokens are
    words, too.

    Words are what the tokenizer's own splitting makes of a text: of WordPiece a token and the `##` pieces after it.
    """
    numbers = np.zeros((len(texts), length), np.int32)
    encodings = itertools.chain.from_iterable(untrusted.encode_in_chunks(tokenizer, texts, words=True))
    for row, encoding in zip(numbers, encodings, strict=True):
        of = encoding.word_ids[:length]
        begins = [a is None or a != b for a, b in zip(of, [None, *of], strict=False)]
        row[: len(of)] = np.cumsum(begins) - 1
    return numbers


def choose(
    allowed_BxL: np.ndarray,
    numbers_BxL: np.ndarray,
    wanted_B: np.ndarray,
    coins_B: np.ndarray,
    words_BxL: np.ndarray | None = None,
    at_least_one: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens, or words, at random until they are as many tokens as wanted, on average exactly.

    Args:
        allowed_BxL: bool, the tokens that may be chosen.
        numbers_BxL: uniform in [0, 1), which say in which order.
        wanted_B: how many of each text, not a whole number.
        coins_B: uniform in [0, 1). The token or word that would cross the number is chosen with the share of it that
            lies below as its probability.
        words_BxL: as from `word_numbers`; None: every token by itself.
        at_least_one: choose the first token or word of the order whatever the coin says.

    Returns:
        bool [B, L], the chosen tokens; int [B, L], the rank of each token's word in the order of choice.
    """
    length = allowed_BxL.shape[1]
    order = np.where(allowed_BxL, numbers_BxL, 2.0)
    first = np.broadcast_to(np.arange(length), order.shape)
    if words_BxL is not None:  # the place of the first allowed token of a token's word
        begins = np.ones(order.shape, bool)
        begins[:, 1:] = (words_BxL[:, 1:] != words_BxL[:, :-1]) | ~allowed_BxL[:, 1:] | ~allowed_BxL[:, :-1]
        first = np.maximum.accumulate(np.where(begins, first, 0), axis=1)
        order = np.take_along_axis(order, first, axis=1)
    sorted_places = np.argsort(order, axis=1, kind="stable")  # the tokens of a word stay side by side
    rank = np.empty_like(sorted_places)
    np.put_along_axis(rank, sorted_places, np.arange(length)[None], axis=1)
    before = np.take_along_axis(rank, first, axis=1)  # tokens of the words that are chosen earlier
    size = np.ones(order.shape)
    if words_BxL is not None:
        at = first + length * np.arange(len(first))[:, None]
        size = np.bincount(at.ravel(), minlength=first.size)[at]
    taken = (before + coins_B[:, None] * size < wanted_B[:, None]) | (at_least_one & (before == 0))
    return allowed_BxL & taken, before


def replace(ids: np.ndarray, numbers: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """What the chosen tokens become.

    Args:
        ids: int [S].
        numbers: uniform in [0, 1), [S, 2]: what becomes of a token, and by which it is replaced.
    """
    kind, which = numbers[:, 0], (numbers[:, 1] * len(vocabulary.ordinary)).astype(np.int64)
    random = vocabulary.ordinary[np.minimum(which, len(vocabulary.ordinary) - 1)]
    return np.where(kind < MASKED, vocabulary.mask, np.where(kind < MASKED + RANDOM, random, ids)).astype(np.int32)
