"""Write folder_oracle.npz: the vectors of `model_folders.TEXTS` by sentence-transformers, for each of its `VARIANTS`.

    PYTHONPATH=tests python tests/data/make_folder_oracle.py

Needs sentence-transformers and torch, which the project itself does not; the committed file was made with
sentence-transformers 6.2.0, transformers 5.24.0 and torch 2.13.0 (CPU, float32).
"""

import tempfile
from pathlib import Path

import numpy as np
from model_folders import PROMPTED, TEXTS, VARIANTS, make
from sentence_transformers import SentenceTransformer

if __name__ == "__main__":
    vectors = {}
    with tempfile.TemporaryDirectory() as place:
        for number, (name, change) in enumerate(VARIANTS.items()):
            folder = Path(place) / str(number)
            make(folder)
            change(folder)
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
            vectors[name] = model.encode(TEXTS)
            if name in PROMPTED:
                vectors[f"{name} (query)"] = model.encode_query(TEXTS)
                vectors[f"{name} (document)"] = model.encode_document(TEXTS)
    np.savez_compressed(Path(__file__).parent / "folder_oracle.npz", **vectors)
