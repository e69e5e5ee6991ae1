"""Products of low rank beside frozen matrices: which parameters learn, and how they are merged (Hu et al. 2021,
arXiv:2106.09685)."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


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
