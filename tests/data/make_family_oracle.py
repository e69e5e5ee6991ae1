"""Write family_oracle.npz: what transformers and sentence-transformers make of the folders in `model_families.MADE`.

    PYTHONPATH=tests:. python tests/data/make_family_oracle.py

For each folder NAME: `NAME/vectors`, the vectors of `TEXTS` by sentence-transformers; `NAME/ids`, the token ids of
`NASTY` one after another, and `NAME/lengths`, how many each text has. `buckets` are those of MPNet's distances.

Needs sentence-transformers and torch, which the project itself does not; the committed file was made with
sentence-transformers 6.2.0, transformers 5.24.0 and torch 2.13.0 (CPU, float32).
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from model_families import MADE, NASTY, POSITIONS, TEXTS
from sentence_transformers import SentenceTransformer
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

if __name__ == "__main__":
    found = {}
    distances = torch.arange(1 - POSITIONS, POSITIONS)
    found["buckets"] = MPNetEncoder.relative_position_bucket(distances).numpy().astype(np.int32)
    with tempfile.TemporaryDirectory() as place:
        for number, (name, made) in enumerate(MADE.items()):
            folder = Path(place) / str(number)
            made.write(folder)
            kind = getattr(transformers, made.sizes.described.model)
            _, info = kind.from_pretrained(folder, output_loading_info=True)
            assert all("pooler" in key for key in info["missing_keys"]), (name, info)
            assert not info["unexpected_keys"], (name, info)
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
            found[f"{name}/vectors"] = model.encode(TEXTS)
            ids = model.tokenizer(NASTY, truncation=True, max_length=model.max_seq_length)["input_ids"]
            found[f"{name}/lengths"] = np.array([len(row) for row in ids], np.int32)
            found[f"{name}/ids"] = np.concatenate([np.array(row, np.int32) for row in ids])
    np.savez_compressed(Path(__file__).parent / "family_oracle.npz", **found)
