"""Products of low rank beside frozen matrices: which parameters learn, and how they are merged (Hu et al. 2021,
arXiv:2106.09685)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mrl_jax.system.errors import UserError


def check_width(config: Any, width: int, projected: Callable[[], int | None]) -> None:
    """Raise `UserError` where the weights end in a linear map to another width, parts are to learn on matrices that
    nothing has trained, or nothing is to learn.

    Args:
        config: the settings of a transformer.
        width: of the embedding.
        projected: the width of the linear map that the weights end in; None without one. Called where there are any.
    """
    if config.weights is None:
        if config.lora_rank:
            raise UserError(f"encoder.lora_rank={config.lora_rank} needs encoder.weights; without, 0")
        if config.frozen:
            raise UserError("encoder.frozen=true needs encoder.weights; without, false")
        return
    theirs = projected()
    if config.frozen and config.lora_rank:
        raise UserError(f"encoder.frozen=true is not allowed with encoder.lora_rank={config.lora_rank}; it needs 0")
    if config.frozen and not config.projection and theirs is None:
        raise UserError("encoder.frozen=true needs encoder.projection=true: nothing else of the encoder would learn")
    if theirs not in (None, width):
        raise UserError(f"width={width} is not allowed; encoder.weights={config.weights} have {theirs}")


def trained(config: Any, parameters: Any) -> Any:
    """Which parameters of a transformer learn, as a tree of bool; None: all."""
    if not (config.lora_rank or config.frozen):
        return None
    learn = {"projection"} if config.frozen else {"lora_a", "lora_b", "projection"}

    def learns(path: tuple[Any, ...], _: Any) -> bool:
        return bool({entry.key for entry in path} & learn)

    return jax.tree_util.tree_map_with_path(learns, parameters)


def merge(parameters: Any) -> Any:
    """The parameters with each product a b added to its kernel, for a format that has no such products."""
    if not isinstance(parameters, Mapping):
        return parameters
    merged = {key: merge(value) for key, value in parameters.items() if key not in ("lora_a", "lora_b")}
    if "lora_a" in parameters:
        a, b = (np.asarray(parameters[key], np.float32) for key in ("lora_a", "lora_b"))
        merged["kernel"] = np.asarray(parameters["kernel"], np.float32) + a @ b
    return merged
