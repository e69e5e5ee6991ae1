"""A part of an encoder as an encoder of its own: its first layers, and the first hidden units of each feed-forward.

What stands before and after the layers (tables, the last norm, pooling, projection) is shared, so the embedding is that
of the whole encoder where it is read after so many layers ("2D Matryoshka": Li et al., 2024, arXiv:2402.14776), or
where all other hidden units are 0 ("MatFormer": Devvrit et al., 2023, arXiv:2310.07707). The rest is not computed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flax import nnx

from mrl_jax.encoders import ENCODERS, EncoderConfig, standalone
from mrl_jax.system.errors import UserError


def sizes(config: EncoderConfig) -> tuple[int, int] | None:
    """The number of layers of an encoder and of hidden units in the feed-forward of each; None where it has no such."""
    blocks = ENCODERS[config.name].blocks
    return None if blocks is None else blocks(config)


def check(config: EncoderConfig, layers: Sequence[int] | None, hidden: Sequence[int] | None) -> None:
    """Raise `UserError` where nesting layers or hidden widths are not ascending numbers that end at the encoder's."""
    whole = sizes(config)
    for i, (key, what, given) in enumerate((("layers", "layers", layers), ("hidden", "hidden units", hidden))):
        if given is None:
            continue
        if whole is None:
            able = ", ".join(name for name, entry in ENCODERS.items() if entry.blocks)
            raise UserError(f"nesting_{key}={list(given)} is not allowed with encoder={config.name}; null, or {able}")
        if list(given) != sorted({*given}) or not given or given[0] < 1 or given[-1] != whole[i]:
            raise UserError(
                f"nesting_{key}={list(given)} is not allowed; ascending numbers of {what}, each at least 1 and the "
                f"last {whole[i]}, all that the encoder has"
            )


def cut_config(
    config: EncoderConfig, vocabulary: int, layers: int | None, hidden: int | None
) -> tuple[EncoderConfig, int]:
    """The config of the part with so many layers and hidden units (None: all), which needs no other files, and its
    number of token ids."""
    config, vocabulary = standalone(config, vocabulary)
    changed: dict[str, Any] = {"layers": layers, "intermediate": hidden}
    given = {key: size for key, size in changed.items() if size is not None}
    return dataclasses.replace(config, **given), vocabulary


def cut(parameters: Any, layers: int | None, hidden: int | None) -> Any:
    """The parameters of that part."""
    blocks = parameters["blocks"]
    parameters = {**parameters, "blocks": {i: blocks[i] for i in range(len(blocks) if layers is None else layers)}}
    return parameters if hidden is None else _narrow(parameters, hidden)


def _narrow(parameters: Any, hidden: int) -> Any:
    """The parameters with the first hidden units of each feed-forward, the maps `up` and `gate` to them and `down`."""
    if not isinstance(parameters, dict):
        return parameters
    narrow = {key: _narrow(value, hidden) for key, value in parameters.items()}
    for key in {"up", "gate"} & parameters.keys():
        narrow[key] = {name: x if name == "lora_a" else x[..., :hidden] for name, x in parameters[key].items()}
    if "down" in parameters:
        down = parameters["down"]
        narrow["down"] = {name: x[:hidden] if name in ("kernel", "lora_a") else x for name, x in down.items()}
    return narrow


def set_units(module: nnx.Module, units: Any) -> None:
    """Let each feed-forward multiply its hidden units by `units`, 0 or 1 [intermediate], which may be traced."""
    for _, part in nnx.iter_modules(module):
        if hasattr(part, "units"):
            part.units = nnx.data(units)
