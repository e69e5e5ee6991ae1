"""A model for the tasks of MTEB (Muennighoff et al. 2023, arXiv:2210.07316), at any dim; needs the extra `mteb`.

    import mteb, mrl_jax
    mteb.evaluate(mrl_jax.mteb.Model("results/mine/latest", dim=64), mteb.get_tasks(["SciFact"]))

Texts of queries and documents get the model's prompts of these names, all others its default prompt.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mrl_jax.model.pretrained import find, is_run
from mrl_jax.system.errors import UserError


class Model:
    """What `mteb.evaluate` takes as a model (its `EncoderProtocol`).

    Args:
        model: a run, a model folder or a known name, as `python -m mrl_jax.evaluate` takes them.
        dim: prefix length, by default the full width.
        arm, seed: of a run.

    Raises:
        UserError: there is no such model of texts, it has fewer dims, or an arm is named of what is no run.
    """

    def __init__(self, model: str, dim: int | None = None, arm: str | None = None, seed: int = 0) -> None:
        model = str(model)
        self.model = find(model, arm, seed)
        width = self.model.dims[-1]
        if dim is not None and not 1 <= dim <= width:
            raise UserError(f"dim={dim} is outside 1…{width}, the width of {model}")
        self.dim = width if dim is None else dim
        member = f"-{arm or 'first'}-seed{seed}" if is_run(model) else ""
        self.name = f"mrl_jax/{model.strip('/').replace('/', '_')}{member}-{self.dim}"

    @property
    def mteb_model_meta(self) -> Any:
        """Name and revision, by which MTEB stores results: another for each dim and each set of weights."""
        from mteb.models.model_meta import ModelMeta

        return ModelMeta.create_empty({
            "name": self.name,
            "revision": self.model.fingerprint,
            "embed_dim": self.dim,
            "framework": ["JAX"],
        })  # fmt: skip

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, batch_size: int = 256, **_: Any
    ) -> np.ndarray:
        """Embeddings of the texts in batches, float32 [n, dim], rows of unit length."""
        texts = [text for batch in inputs for text in batch["text"]]
        role = None if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        return self.model.encode(texts, self.dim, batch_size, show_progress=False, prompt=role)

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Cosines of all pairs of rows, float [n, m]."""
        return np.asarray(embeddings1 @ np.asarray(embeddings2).T)

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Cosines of rows with the rows beside them, float [n]."""
        return np.asarray(np.sum(np.asarray(embeddings1) * np.asarray(embeddings2), axis=1))
