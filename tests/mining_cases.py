"""Anchors, documents and pairs whose hard negatives `data/make_mining_oracle.py` has asked for."""

import numpy as np

ANCHORS, DOCUMENTS, WIDTH = 40, 60, 6


def vectors() -> dict[str, np.ndarray]:
    """Vectors of anchors a0, … and documents d0, …, of unit length; document i is near anchor i."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(ANCHORS, WIDTH))
    documents = rng.normal(size=(DOCUMENTS, WIDTH))
    documents[:ANCHORS] += 1.5 * z
    named = {f"a{i}": row for i, row in enumerate(z)} | {f"d{i}": row for i, row in enumerate(documents)}
    return {name: (row / np.linalg.norm(row)).astype(np.float32) for name, row in named.items()}


def pairs(several: bool) -> list[tuple[str, str]]:
    """One positive per anchor, or of some anchors another one."""
    one = [(f"a{i}", f"d{i}") for i in range(ANCHORS)]
    return one + ([(f"a{i}", f"d{ANCHORS + i // 3}") for i in range(0, ANCHORS, 3)] if several else [])
