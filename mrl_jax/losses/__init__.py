"""Nested losses: pure functions of arrays that return a scalar and the loss of each granularity."""

from mrl_jax.losses.classification import (
    cross_entropy,
    nested_cross_entropy,
    sample_granularities,
    uncertainty_weighted,
)
from mrl_jax.losses.contrastive import nested_info_nce

__all__ = ["cross_entropy", "nested_cross_entropy", "nested_info_nce", "sample_granularities", "uncertainty_weighted"]
