"""Write NAME_oracle.npz: embeddings of eight sentences by a model of `PRETRAINED` in its published implementation.

    python tests/data/make_pretrained_oracle.py NAME

Needs sentence-transformers and torch, which the project itself does not; the committed files were made with
sentence-transformers 6.2.0, transformers 5.23.0 (minilm) or 5.24.0 (mpnet) and torch 2.13.0 (CPU, float32).
"""

import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from mrl_jax.encoders import huggingface

SENTENCES = [
    "",
    "The cat sat on the mat.",
    "Matryoshka dolls nest one inside the other; so do the prefixes of a good embedding.",
    "Größe, Ärger und Übermut: naïve façades, piñatas and Ærøskøbing.",
    "吾輩は猫である。名前はまだ無い。 Москва слезам не верит 🙂",
    "How do I reset the password of my e-mail account, and what if I've lost access to it?",
    "x",
    " ".join(f"In chapter {i} the surveyors measured another stretch of the old coastline." for i in range(1, 61)),
]

if __name__ == "__main__":
    model = SentenceTransformer(str(huggingface.resolve(sys.argv[1])), device="cpu")
    unnormalised = SentenceTransformer(modules=[model[0], model[1]], device="cpu")
    np.savez_compressed(
        Path(__file__).parent / f"{sys.argv[1]}_oracle.npz",
        sentences=np.array(SENTENCES),
        normalised=model.encode(SENTENCES, convert_to_numpy=True),
        pooled=unnormalised.encode(SENTENCES, convert_to_numpy=True),
    )
