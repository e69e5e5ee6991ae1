"""The configuration of a run: its schema, the command line, the stored form.

Hydra composes the options and the command line into one mapping; `parse` turns that into a `Config`, checking every
key and value. Nothing downstream sees OmegaConf.
"""

from mrl_jax.config.build import as_word, build, build_encoder
from mrl_jax.config.command_line import CONF, explain, from_command_line, quote, with_encoder
from mrl_jax.config.help import page as help_page
from mrl_jax.config.help import unknown_flag
from mrl_jax.config.parse import parse
from mrl_jax.config.recipes import RECIPES, Recipe, assign, by_size, kind_of, resolve, row_of, values
from mrl_jax.config.schema import DEFAULTS, Config, LossConfig, OptimizerConfig, TrainerConfig
from mrl_jax.config.sources import parts
from mrl_jax.config.stored import (
    as_begun,
    differences,
    from_yaml,
    missing_keys,
    stored_description,
    stored_encoder,
    to_yaml,
)
from mrl_jax.evaluate import EvaluationConfig
from mrl_jax.system.processes import DistributedConfig

__all__ = [
    "CONF",
    "DEFAULTS",
    "RECIPES",
    "Config",
    "DistributedConfig",
    "EvaluationConfig",
    "LossConfig",
    "OptimizerConfig",
    "Recipe",
    "TrainerConfig",
    "as_begun",
    "as_word",
    "assign",
    "build",
    "build_encoder",
    "by_size",
    "differences",
    "explain",
    "from_command_line",
    "from_yaml",
    "help_page",
    "kind_of",
    "missing_keys",
    "parse",
    "parts",
    "quote",
    "resolve",
    "row_of",
    "stored_description",
    "stored_encoder",
    "to_yaml",
    "unknown_flag",
    "values",
    "with_encoder",
]
