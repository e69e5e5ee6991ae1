"""How alike two rankings of the same documents are, such as those by a prefix and by the whole embedding.

With X_d the number of documents that the first d of both have in common:

    overlap@10    X_10 / 10
    rbo           rank-biased overlap, (1 − p) / p · Σ_{d ≤ k} X_d / d · p^d + X_k / k · p^k

(Webber, Moffat and Zobel, 2010, ACM TOIS 28(4), in its extrapolated form RBO_EXT: beyond the depth k that was ranked,
agreement stays what it is there. With p = 0.9 the first ten ranks have 86 % of the weight; of k = 100 ranks, what is
extrapolated has 3e-5.) A ranking with fewer documents than d has its number in place of d.
"""

import numpy as np

P = 0.9  # persistence: the probability that a reader of rank d goes on to rank d + 1
QUERIES_AT_ONCE = 256
METRICS = ("overlap@10", "rbo")


def outcomes(found: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """The agreement of each ranking with the one beside it, in O(Q · k²).

    Args:
        found: document rows int [Q, k], best first; −1 for none, after all others.
        reference: the same, with as many documents per query.

    Returns:
        By metric float64 [Q].
    """
    shares_Qxk = np.concatenate([np.zeros((0, found.shape[1])), *(
        _shares(found[i : i + QUERIES_AT_ONCE], reference[i : i + QUERIES_AT_ONCE])
        for i in range(0, len(found), QUERIES_AT_ONCE)
    )])  # fmt: skip
    weights = (1 - P) * P ** np.arange(found.shape[1])
    extrapolated = shares_Qxk[:, -1] * P ** found.shape[1]
    return {"overlap@10": shares_Qxk[:, :10][:, -1], "rbo": shares_Qxk @ weights + extrapolated}


def _shares(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """X_d / d for d = 1 … k, float64 [Q, k]."""
    same = (found[:, :, None] == reference[:, None, :]) & (found >= 0)[:, :, None]
    # A document joins the common ones at the later of its two ranks.
    new = np.tril(same).any(axis=2).astype(int) + np.triu(same, 1).any(axis=1)
    size = np.maximum((reference >= 0).cumsum(axis=1), 1)
    return np.asarray(new.cumsum(axis=1) / size)
