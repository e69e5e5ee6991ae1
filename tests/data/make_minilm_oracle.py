"""Write minilm_oracle.npz: embeddings of eight sentences by all-MiniLM-L6-v2 in its published implementation.

    python tests/data/make_minilm_oracle.py FOLDER

FOLDER holds the model: `mrl_jax.encoders.huggingface.resolve("minilm")` says where.
Needs sentence-transformers and torch, which the project itself does not; the committed file was made with
sentence-transformers 6.2.0, transformers 5.23.0 and torch 2.13.0 (CPU, float32).
"""

import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

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
    model = SentenceTransformer(sys.argv[1], device="cpu")
    unnormalised = SentenceTransformer(modules=[model[0], model[1]], device="cpu")
    np.savez_compressed(
        Path(__file__).parent / "minilm_oracle.npz",
        sentences=np.array(SENTENCES),
        normalised=model.encode(SENTENCES, convert_to_numpy=True),
        pooled=unnormalised.encode(SENTENCES, convert_to_numpy=True),
    )
