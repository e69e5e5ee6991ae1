"""Make mining_oracle.json: the hard negatives that `mine_hard_negatives` of sentence-transformers finds.

    PYTHONPATH=tests python tests/data/make_mining_oracle.py      # needs sentence-transformers and datasets

Texts are names of the vectors in tests/mining_cases.py.
"""

import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from mining_cases import DOCUMENTS, pairs, vectors
from sentence_transformers.util import mine_hard_negatives

CASES = {
    "top": {"range_min": 0, "range_max": 20, "num_negatives": 3},
    "skip": {"range_min": 5, "range_max": 20, "num_negatives": 4},
    "margin": {"range_min": 0, "range_max": 30, "num_negatives": 3, "absolute_margin": 0.1},
    "skip, margin": {"range_min": 3, "range_max": 30, "num_negatives": 3, "absolute_margin": 0.05},
    "relative": {"range_min": 1, "range_max": 40, "num_negatives": 2, "relative_margin": 0.05},
    "both": {"range_min": 0, "range_max": 40, "num_negatives": 2, "absolute_margin": 0.02, "relative_margin": 0.2},
}


class Model:
    """As much of a SentenceTransformer as mining uses."""

    device = "cpu"

    def __init__(self) -> None:
        self.vectors = vectors()

    def encode_query(self, texts: list[str], **_: object) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts])

    encode_document = encode_query

    def similarity(self, a: object, b: object) -> torch.Tensor:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a: object, b: object) -> torch.Tensor:
        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=1)


def main() -> None:
    found = {}
    for several in (False, True):
        rows = pairs(several)
        data = Dataset.from_dict({"anchor": [a for a, _ in rows], "positive": [d for _, d in rows]})
        for name, case in CASES.items():
            options = case | ({"range_max": DOCUMENTS} if several else {})
            corpus = [f"d{i}" for i in range(DOCUMENTS)]
            mined = mine_hard_negatives(
                data, Model(), corpus=corpus, output_format="n-tuple", verbose=False, **options
            )  # fmt: skip
            columns = [f"negative_{i + 1}" for i in range(case["num_negatives"])]
            found[f"{name}, several positives" if several else name] = {
                "options": options,
                "rows": [[row["anchor"], row["positive"], *(row[column] for column in columns)] for row in mined],
            }
    text = json.dumps(found).replace("}, ", "},\n")
    (Path(__file__).parent / "mining_oracle.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
