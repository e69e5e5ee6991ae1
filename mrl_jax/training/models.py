"""Save and load the best model of a member in the run directory."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mrl_jax.arms import Member
from mrl_jax.runs import checkpoint
from mrl_jax.system import processes
from mrl_jax.system.errors import UserError
from mrl_jax.training.step import TrainStep, Weights


class FitResult(NamedTuple):
    """A trained member: its best model, with the validation accuracy and the step of that model."""

    member: Member
    model: Weights
    accuracy: float
    step: int


def save_model(folder: Path, fitted: FitResult, trained: bool = True) -> None:
    """Write the best model of a member to `folder`; `trained` records whether it was trained to the end."""
    meta = {"member": fitted.member.label, "validation_accuracy": fitted.accuracy, "trained": trained}
    model = processes.on_host(fitted.model)
    processes.on_process0(lambda: bool(checkpoint.save(folder, fitted.step, model, meta, keep=1)))


def load_model(folder: Path, member: Member, program: TrainStep) -> FitResult | None:
    """The model of a member that was trained to the end; None if there is none, or it is damaged."""
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.shapes)
    on_this_process: dict[str, Any] = {}

    def newest() -> dict[str, Any]:
        """The step and accuracy of the model, whose arrays go to `on_this_process`; empty if there is none."""
        steps = checkpoint.saved_steps(folder)
        try:
            on_this_process["model"], meta = checkpoint.load(folder, steps[-1], like)
            description = {"step": steps[-1], "accuracy": float(meta["validation_accuracy"])}
            return description if meta.get("trained") else {}
        except IndexError:
            return {}
        except (UserError, KeyError, TypeError, ValueError) as damaged:
            tqdm.write(f"{damaged}; {member.label} is trained again", file=sys.stderr)
            return {}

    description = processes.on_process0(newest)
    if not description:
        return None
    model = processes.broadcast(on_this_process.get("model", like))
    return FitResult(member, model, description["accuracy"], description["step"])
