"""The losses of pairs under the name that they had before `mrl_jax.losses` held all losses."""

from mrl_jax.losses import (
    cached_gradient,
    nested_cosent,
    nested_cosine_regression,
    nested_cosines,
    nested_distillation,
    nested_info_nce,
    nested_pair_distillation,
)

__all__ = [
    "cached_gradient",
    "nested_cosent",
    "nested_cosine_regression",
    "nested_cosines",
    "nested_distillation",
    "nested_info_nce",
    "nested_pair_distillation",
]
