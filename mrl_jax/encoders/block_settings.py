"""What the settings of `transformer` and `vit` have in common: their sizes, and the ranges of what both know."""

from collections.abc import Mapping
from typing import Any

from mrl_jax.system.errors import UserError, one_of

SIZES = ("layers", "hidden", "heads", "intermediate", "layer_norm_eps")


def check_agreement(config: Any, given: Mapping[str, Any], architecture: Any) -> None:
    """Raise `UserError` for a setting that is `given` and is not that of the weights, whose architecture it is."""
    for key, value in given.items():
        if value != (theirs := getattr(architecture, key)):
            raise UserError(f"encoder.{key}={value} is not allowed; encoder.weights={config.weights} have {theirs}")


def check_blocks(config: Any) -> None:
    """Raise `UserError` for a setting of the layers that is out of range, in a config without nulls."""
    for key in SIZES:
        if not getattr(config, key) > 0:
            raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; a number above 0")
    for key in ("dropout", "attention_dropout"):
        if not 0 <= getattr(config, key) < 1:
            raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; 0 ≤ value < 1")
    if config.attention == "fused" and config.attention_dropout:
        raise UserError(
            f"encoder.attention_dropout={config.attention_dropout} is not allowed with encoder.attention=fused; 0"
        )
    one_of("encoder.attention", config.attention, ("plain", "fused"))
    one_of("encoder.dtype", config.dtype, ("float32", "bfloat16"))
