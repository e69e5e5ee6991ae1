"""Choose the recipe of a run: its keys that the command left open, by the size of the data or by short trials.

A trial trains the first arm, from seed 0, for `TRIAL_SHARE` of the epochs, at `TRIAL_WIDTH` dims. It is scored on the
validation split at its best moment: by the mean accuracy over the wider half of its nesting dims, and over all of them.
What is right about a pair, its task says (`Objective.score`). Recipes whose wide accuracy is less than half its
standard error, √(p (1 − p) / n), below the best are as good, and of these those whose accuracy over all dims is. The
most regularised of what is left is taken, which is the first: what a few hundred texts cannot tell apart, others can
(the one-standard-error rule: Breiman et al. 1984, section 3.4.3, with half of one). Two to four trials of half the
epochs, at a quarter of the usual width, take a third to a half of the time of a run; of small data more, for each
compiles a program. Those of pretrained transformers keep the width and, unless it is frozen, take a third of the
epochs. Trials depend on the command and the data alone, so a run that is started again chooses the same. The test split
is not read.
"""

import dataclasses
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mrl_jax import arms, encoders, tasks
from mrl_jax import config as configuration
from mrl_jax.arms import Member
from mrl_jax.config import Config, space
from mrl_jax.data import Dataset, PairDataset, StreamedTexts
from mrl_jax.encoders import huggingface
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.runs import Log
from mrl_jax.system import console, processes
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.description import describe, read_splits
from mrl_jax.text.tokenizers import UNSPACED
from mrl_jax.training import disk_examples
from mrl_jax.training.trainer import Trainer

TRIAL_WIDTH = 64  # of the embedding
TRIAL_SHARE, TRIAL_SHARE_PRETRAINED = 0.5, 0.3  # of the epochs that suit the size of the data
MIN_TRIAL_STEPS = 50  # fewer only where the run has fewer
EVALUATIONS = 4  # times that a trial is scored
MEASURED_TEXTS = 1000  # whose words are counted
WORD = re.compile(rf"{UNSPACED}|\w+")

Record = dict[str, Any]  # the content of recipe.json


def choose(config: Config, dataset: Any) -> tuple[Config, Record]:
    """`config` without open keys, and how they were chosen; an empty record where none was open."""
    if not config.open_keys:
        return config, {}
    row, examples = configuration.row_of(config), len(dataset.train)
    texts = dataset.train.raw if dataset.kind == "text" else None
    streamed = isinstance(texts, StreamedTexts)
    unit = config.trainer.accumulate * jax.device_count()
    scores_of: dict[str, tuple[float, float]] = {}  # by recipe the accuracy at the wider half of the dims, and at all
    if config.recipe in row:
        name = config.recipe
    elif config.recipe == "auto" and len(row) > 1 and processes.count() == 1 and not streamed:
        names = list(row) if texts is None else candidates(row, texts)
        scores_of = _try_all({name: resolve(config, name, examples, unit) for name in names}, dataset)
        name = best(scores_of, len(dataset.validation))
    else:
        name = fitting(row, texts)
    chosen = resolve(config, name, examples, unit)
    values = configuration.values(chosen, config.open_keys)
    wide = {name: scores[0] for name, scores in scores_of.items()}
    scores = f" (validation: {', '.join(f'{k} {100 * v:.1f} %' for k, v in wide.items())})" if scores_of else ""
    console.say(
        f"recipe {name}{scores}: {' '.join(f'{key}={configuration.as_word(value)}' for key, value in values.items())}"
    )
    over_all = {name: scores[1] for name, scores in scores_of.items()}
    return chosen, {"recipe": name, "keys": values, "trials": wide, "trials_over_all_dims": over_all}


def resolve(config: Config, name: str, examples: int, unit: int = 1) -> Config:
    """As `config.resolve`; pretrained weights of another width have a projection, if the command leaves that open."""
    chosen: Config = configuration.resolve(config, name, examples, unit)
    encoder = chosen.encoder
    if "encoder.projection" in config.open_keys and isinstance(encoder, TransformerConfig) and encoder.weights:
        described = huggingface.describe(huggingface.resolve(encoder.weights))
        if described.projected is None and described.architecture.hidden != config.width:
            chosen = configuration.assign(chosen, {"encoder.projection": True})
    return chosen


def _try_all(trials: dict[str, Config], dataset: Any) -> dict[str, tuple[float, float]]:
    """The scores of the recipes that can be tried; raises the `UserError` of the last one where none can."""
    scores_of: dict[str, tuple[float, float]] = {}
    for name, config in trials.items():
        try:
            encoders.check_width(config.encoder, config.width)
            scores_of[name] = _trial(config, dataset, name)
        except UserError as error:  # it knows no word of most texts, or diverges
            if name == next(reversed(trials)) and not scores_of:
                raise
            console.say(f"recipe {name} is left out: {error}")
    return scores_of


def best(scores_of: dict[str, tuple[float, float]], examples: int) -> str:
    """The first recipe that is as good as any at wide dims and, of such, over all dims."""
    left = list(scores_of)
    for which in (0, 1):
        most = max(scores_of[name][which] for name in left)
        margin = (most * (1 - most) / examples) ** 0.5 / 2
        left = [name for name in left if scores_of[name][which] >= most - margin]
    return left[0]


def fitting(row: dict[str, configuration.Recipe], texts: Any) -> str:
    """The first recipe for texts as long as these; for features (None), the first that needs no trial."""
    words = math.inf if texts is None else max(mean_words(texts), 1.0)
    return next(name for name, recipe in row.items() if words <= recipe.words)


def candidates(row: dict[str, configuration.Recipe], texts: Any) -> list[str]:
    """The recipes that are worth a trial for texts as long as these."""
    words = mean_words(texts)
    return [name for name, recipe in row.items() if recipe.words_to_try[0] <= words < recipe.words_to_try[1]]


def mean_words(texts: Any) -> float:
    """Words per text, of the first texts; in scripts without spaces, characters or syllables."""
    counts = [len(WORD.findall(text)) for text, _ in zip(texts, range(MEASURED_TEXTS), strict=False)]
    return float(np.mean(counts)) if counts else 0.0


def _trial(config: Config, dataset: Dataset | PairDataset, name: str) -> tuple[float, float]:
    """The validation scores of a short and narrow run: the mean over the wider half of its dims, and over all."""
    pretrained = configuration.kind_of(config) == "pretrained"
    width = config.width if pretrained else min(config.width, TRIAL_WIDTH)
    dims = (*(m for m in config.nesting_dims if m < width), width)
    loss = dataclasses.replace(config.loss, weights=None)
    config = dataclasses.replace(config, width=width, nesting_dims=dims, loss=loss)
    config = dataclasses.replace(config, nesting_layers=None, nesting_hidden=None)  # of the whole encoder
    reader = disk_examples.fit(config, dataset)
    splits = read_splits(config, dataset.without_test(), reader, tell=lambda text: None)
    total = config.trainer.total_steps(len(splits["train"]))
    is_slow = pretrained and not getattr(config.encoder, "frozen", False)
    share = TRIAL_SHARE_PRETRAINED if is_slow else TRIAL_SHARE
    steps = max(1, round(share * total), min(total, MIN_TRIAL_STEPS))
    step = tasks.train_step(config, describe(config, dataset, reader, splits), steps)
    short = dataclasses.replace(config.trainer, population="loop", log_every=steps, evaluations=EVALUATIONS)
    trainer = Trainer(step, short)
    population = arms.expand(config.arms, dims)
    member = Member(population[0], 0, space.of_arms(config, population)[population[0].label])
    with tempfile.TemporaryDirectory() as folder, console.progress(steps, f"try recipe {name}", "step") as bar:
        log, states = Log(Path(folder) / "metrics.jsonl"), Path(folder) / "state"
        (result,) = trainer.fit([member], range(1), splits["train"], splits["validation"], states, log, bar)
    kind = step.kinds.index(member.arm.head)
    accuracy_K = trainer.accuracy(result.model, splits["validation"], config.trainer.batch_size, None)[0][kind]
    scores = {m: float(a) for m, a in zip(dims, accuracy_K, strict=True) if m in member.arm.trained(dims)}
    wide = [a for m, a in scores.items() if 2 * m >= width]
    every = list(scores.values())
    return float(np.mean(wide or every)), float(np.mean(every))
