"""BM25, the line that every search model has to beat, and the words that baselines count.

    s(q, d) = Σ_{t in q} idf(t) · tf(t, d) / (tf(t, d) + K1 · (1 − B + B · |d| / mean |d|))
    idf(t)  = ln(1 + (N − df(t) + ½) / (df(t) + ½))

(Robertson and Zaragoza 2009, eq. 3.15; the 1 in idf, as in Lucene, keeps the weight of a word in more than half of the
documents above zero.) A word that stands twice in a query counts twice. No stemming, no stop words.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array

from mrl_jax.evaluate.neighbours import top_k
from mrl_jax.text.tokenizers import HAS_UNSPACED, UNSPACED

K1, B = 1.2, 0.75  # within the ranges that the authors recommend, and Lucene's; chosen on no data
MAX_SCORES = 1 << 25  # of queries and documents that are held at once
QUERIES_AT_ONCE = 256

_WORD = re.compile(r"\b\w\w+\b")
_UNIT = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})\w){{2,}}")


def words(text: str) -> list[str]:
    """Lower-cased words of two letters or more, as scikit-learn's vectorizers have them; in scripts without spaces
    between words, characters or syllables."""
    text = text.lower()
    return (_UNIT if HAS_UNSPACED.search(text) else _WORD).findall(text)


def rank(queries: Sequence[str], documents: Sequence[str], depth: int, k1: float = K1, b: float = B) -> np.ndarray:
    """The best documents of each query by BM25.

    Args:
        queries: Q texts.
        documents: N texts.
        depth: how many to rank, at most N.
        k1, b: the formula's constants.

    Returns:
        Document rows int [Q, depth], best first, the lower row first where scores are equal; −1 in place of documents
        that share no word with the query.
    """
    vocabulary: dict[str, int] = {}
    weights = weigh(_count(documents, vocabulary, grows=True), k1, b)
    return nearest(_count(queries, vocabulary), weights, depth, positive=True)


def weigh(counts_NxV: csr_array, k1: float = K1, b: float = B) -> csr_array:
    """What each word of each document adds to the score of a query with that word, from the counts of words."""
    total, size = counts_NxV.shape
    lengths = counts_NxV.sum(axis=1)
    frequency = np.bincount(counts_NxV.indices, minlength=size)
    idf = np.log1p((total - frequency + 0.5) / (frequency + 0.5))
    tf, rows = counts_NxV.data, np.repeat(np.arange(total), np.diff(counts_NxV.indptr))
    penalty = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-12))
    return csr_array((idf[counts_NxV.indices] * tf / (tf + penalty[rows]), counts_NxV.indices, counts_NxV.indptr),
                     counts_NxV.shape)  # fmt: skip


def nearest(queries_QxV: csr_array, documents_NxV: csr_array, depth: int, positive: bool = False) -> np.ndarray:
    """The rows of the documents with the largest inner products, int [Q, depth], the lower row first where these are
    equal; where only `positive` ones count, −1 in place of the others."""
    by_word = csr_array(documents_NxV.T)
    at_once = max(1, min(QUERIES_AT_ONCE, MAX_SCORES // max(1, by_word.shape[1])))
    ranked = np.empty((queries_QxV.shape[0], depth), np.int32)
    for start in range(0, len(ranked), at_once):
        scores = (queries_QxV[start : start + at_once] @ by_word).toarray().astype(np.float32)
        padded = np.pad(scores, ((0, at_once - len(scores)), (0, 0)))  # one shape, one program
        best = np.asarray(_best(jnp.asarray(padded), k=depth))[: len(scores)]
        found = np.take_along_axis(scores, best, axis=1) > 0
        ranked[start : start + at_once] = np.where(found, best, -1) if positive else best
    return ranked


@partial(jax.jit, static_argnames="k")
def _best(scores_QxN: jax.Array, k: int) -> jax.Array:
    return top_k(scores_QxN, k)


def _count(texts: Iterable[str], vocabulary: dict[str, int], grows: bool = False) -> csr_array:
    """How often each text has each word of the vocabulary, float64 [n, V]; where that `grows`, it gets all words."""
    indices: list[int] = []
    counts: list[int] = []
    starts = [0]
    for text in texts:
        if grows:
            known = Counter(vocabulary.setdefault(word, len(vocabulary)) for word in words(text))
        else:
            known = Counter(vocabulary[word] for word in words(text) if word in vocabulary)
        indices += known.keys()
        counts += known.values()
        starts.append(len(indices))
    arrays = np.array(counts, np.float64), np.array(indices, np.int64), np.array(starts, np.int64)
    return csr_array(arrays, (len(starts) - 1, max(1, len(vocabulary))))
