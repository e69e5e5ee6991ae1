"""The settings that each member of a population may have for itself, as arguments of the one compiled step.

A constant of the configuration becomes an argument where a member has a value of its own for it: a *row* has a number
for each of these keys, beside the arm's loss weights. So arms, settings and seeds share one compilation. What changes
the shapes of the program, or which of its parts there are, cannot be in a row; a sweep over runs tries that.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

OPTIMIZER = ("learning_rate", "weight_decay", "momentum", "adaptivity", "warmup", "clip_norm")
LOSS = (
    *("label_smoothing", "temperature", "distillation", "teacher_weight", "shortlist", "shortlist_temperature"),
    *("binary", "prefix_gradient"),
)

Settings = Mapping[str, float]  # by key, such as optimizer.learning_rate


def is_zero(value: Any) -> bool:
    """Whether a setting is the constant 0, so that what it weighs can be left out; an argument of the compiled step may
    be 0 in some rows only."""
    return isinstance(value, int | float | np.number) and value == 0


def of_section(settings: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The settings of one section of the configuration, by the name of the field."""
    return {key.removeprefix(f"{section}."): value for key, value in settings.items() if key.startswith(f"{section}.")}
