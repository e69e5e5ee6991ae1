"""The configuration of a run: its schema, the command line, the stored form.

Hydra composes the options and the command line into one mapping; `parse` turns that into a `Config`, checking every
key and value. Nothing downstream sees OmegaConf.
"""

from mrl_jax.config.build import build
from mrl_jax.config.command_line import CONF, explain, from_command_line
from mrl_jax.config.help import page as help_page
from mrl_jax.config.help import unknown_flag
from mrl_jax.config.parse import parse
from mrl_jax.config.schema import DEFAULTS, Config, LossConfig, OptimizerConfig, TrainerConfig
from mrl_jax.config.stored import differences, from_yaml, to_yaml
from mrl_jax.evaluate import EvaluationConfig
from mrl_jax.processes import DistributedConfig

__all__ = [
    "CONF",
    "DEFAULTS",
    "Config",
    "DistributedConfig",
    "EvaluationConfig",
    "LossConfig",
    "OptimizerConfig",
    "TrainerConfig",
    "build",
    "differences",
    "explain",
    "from_command_line",
    "from_yaml",
    "help_page",
    "parse",
    "to_yaml",
    "unknown_flag",
]
