"""Several sources in one training: `data=mixture data.sources={NAME: {source: …}, …}`."""

from typing import Any

import numpy as np

from mrl_jax import data
from mrl_jax.data.config import DataConfig
from mrl_jax.data.inputs import StreamedTexts
from mrl_jax.data.mixture import MixedDataset
from mrl_jax.system.errors import UserError, within


def read(config: DataConfig) -> MixedDataset:
    """Every source of the mixture, read as its section says and assembled. All hold one kind of data."""
    parts = {}
    for name, source in (config.sources or {}).items():
        with within(f"data.sources.{name}"):
            part = data.load(source)
            assert not isinstance(part, MixedDataset)  # see `config.sources`
            if any(isinstance(split.raw, StreamedTexts) for split in (part.train, part.validation)):
                raise UserError("streaming=true is not allowed in a mixture; this large source needs streaming=false")
            parts[name] = part
    kinds = {name: part.kind for name, part in parts.items()}
    if len(set(kinds.values())) > 1:
        held = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise UserError(f"data.sources are of several kinds ({held}); one encoder reads one kind")
    if "image-text" in kinds.values():
        raise UserError(f"data.sources.{next(iter(kinds))} holds image-text, which is not allowed in a mixture")
    if "text" not in kinds.values():
        rows: dict[str, Any] = {name: part.train.raw for name, part in parts.items() if len(part.train)}
        shapes = {name: rows[name][np.arange(1)].shape[1:] for name in rows}
        if len(set(shapes.values())) > 1:
            held = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise UserError(f"data.sources have inputs of several shapes ({held}); one encoder reads one")
    return MixedDataset("mixture", next(iter(kinds.values())), parts)  # type: ignore[arg-type]
