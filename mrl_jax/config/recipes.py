"""Recipes: values for the keys that a command leaves open, whose value is then `auto`.

    recipe=auto    the recipes of the encoder are tried on validation, see `tasks.tuning`
    recipe=fixed   the first one that suits the length of the texts, of those that need no trial
    recipe=none    the plain defaults beside each key; experiments pin what differs from them
    recipe=NAME    that one

A key that the command sets keeps its value in all of them.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from mrl_jax.losses import LOSSES
from mrl_jax.system.errors import one_of

AUTO = "auto"


class Recipe(NamedTuple):
    """An entry of `RECIPES`."""

    keys: dict[str, Any]  # key of the command line → value
    words: float = math.inf  # recipe=fixed takes the first whose texts have at most so many words on average; 0: none
    words_to_try: tuple[float, float] = (0, math.inf)  # recipe=auto tries it from so many on average, below so many


_BAG = {
    "optimizer.learning_rate": 2e-2,
    "optimizer.warmup": 0.0,
    "optimizer.adaptivity": 0.5,
    "optimizer.weight_decay": 0.3,
    "encoder.word_dropout": 0.0,
    "encoder.dropout": 0.0,
    "encoder.min_documents": 1,
    "encoder.units": "words",
    "encoder.ngrams": 1,
}

_BAG_OF_PAIRS = _BAG | {
    "optimizer.learning_rate": 1e-2,
    "optimizer.adaptivity": 1.0,
    "optimizer.weight_decay": 0.0,
    "encoder.word_dropout": 0.2,
}

_STATIC = {
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup": 0.0,
    "optimizer.adaptivity": 0.5,
    "optimizer.weight_decay": 0.1,
    "encoder.token_dropout": 0.0,
    "encoder.dropout": 0.0,
    "encoder.weights": None,
}

_FEATURES = {
    "optimizer.learning_rate": 3e-3,
    "optimizer.warmup": 0.05,
    "optimizer.adaptivity": 1.0,
    "optimizer.weight_decay": 0.1,
    "encoder.hidden": (512,),
    "encoder.dropout": 0.0,
}

_FINE = {
    "optimizer.learning_rate": 3e-4,
    "optimizer.weight_decay": 1e-2,
    "optimizer.warmup": 0.1,
    "encoder.frozen": False,
    "encoder.projection": False,
}
_FROZEN = _FINE | {
    "optimizer.learning_rate": 1e-2,
    "optimizer.weight_decay": 0.3,
    "encoder.frozen": True,
    "encoder.projection": True,
}

# By kind of encoder, see `kind_of`, and what the loss learns from, from the most regularised on; auto tries those of a
# row that suit the length of the texts.
RECIPES: dict[tuple[str, str], dict[str, Recipe]] = {
    ("bag", "classes"): {
        # Short texts: no word can be left out.
        "strong_decay": Recipe(_BAG | {"optimizer.weight_decay": 1.0}, words=0, words_to_try=(0, 30)),
        "pairs": Recipe(_BAG | {"optimizer.weight_decay": 0.5, "encoder.ngrams": 2}, words=0, words_to_try=(0, 60)),
        "characters": Recipe(_BAG | {"encoder.units": "characters", "encoder.ngrams": 5}, words=0, words_to_try=(0, 5)),
        "words": Recipe(
            _BAG | {"optimizer.learning_rate": 4e-2, "optimizer.weight_decay": 0.1}, words=30, words_to_try=(0, 60)
        ),
        "dropout": Recipe(
            _BAG | {"encoder.word_dropout": 0.5, "encoder.dropout": 0.2, "encoder.min_documents": 2},
            words=0,
            words_to_try=(30, math.inf),
        ),
        "frequent_words": Recipe(_BAG | {"encoder.min_documents": 2}, words_to_try=(30, math.inf)),
    },
    ("static", "classes"): {
        "wordllama": Recipe(_STATIC | {"encoder.weights": "wordllama"}, words=0),
        "random": Recipe(_STATIC),
    },
    ("features", "classes"): {
        "linear": Recipe(_FEATURES | {"encoder.hidden": (), "optimizer.weight_decay": 0.3}, words=0),
        "dropout": Recipe(_FEATURES | {"encoder.dropout": 0.5}),
        "hidden": Recipe(_FEATURES | {"encoder.dropout": 0.1}),
    },
    ("pretrained", "classes"): {"frozen": Recipe(_FROZEN, words=0), "fine": Recipe(_FINE)},
    ("bag", "pairs"): {
        "dropout": Recipe(_BAG_OF_PAIRS | {"encoder.word_dropout": 0.5}, words=0),
        "words": Recipe(_BAG_OF_PAIRS),
    },
    ("static", "pairs"): {
        "wordllama": Recipe(_STATIC | {"encoder.weights": "wordllama"}, words=0),
        "random": Recipe(_STATIC),
    },
    ("pretrained", "pairs"): {"frozen": Recipe(_FROZEN, words=0), "fine": Recipe(_FINE)},
}
for _kind in ("bag", "static", "pretrained"):
    RECIPES[_kind, "scored pairs"] = RECIPES[_kind, "pairs"]
SIZE_KEYS = ("trainer.epochs", "trainer.batch_size")  # that follow the number of examples, see `by_size`
# What is evaluated: metrics that take long, and are there to compare arms, are left out of a run of one arm.
EVALUATION_KEYS = {"evaluation.refit": None, "evaluation.quantised": False}
KEYS = tuple(
    dict.fromkeys(
        [*SIZE_KEYS, *EVALUATION_KEYS, *(key for row in RECIPES.values() for one in row.values() for key in one.keys)]
    )
)
TRIED = ("files", "features", "pairs")  # sources of a user's own data, for which recipe=auto is the default


def by_size(kind: str, examples: int, learns_from: str = "classes") -> dict[str, Any]:
    """Batch size and epochs: about 1,000 steps of growing batches; the largest sets are still seen twice. Those of a
    pretrained transformer stay small, so it takes more steps where there is more to learn from.

    Pairs without scores are told apart from the others of a batch, so a pretrained transformer has larger ones of them.
    """
    batch = 2 ** round(math.log2(max(examples, 1) / 100))
    if kind in ("pretrained", "features") and learns_from == "pairs":
        batch = min(128, examples // 8)
    if kind == "pretrained":
        batch = batch if learns_from == "pairs" else min(32, batch)
        epochs = round(4 * (10_000 / max(examples, 1)) ** 0.4)
        return {"trainer.batch_size": max(batch, 16), "trainer.epochs": float(min(max(epochs, 2), 10))}
    epochs = round(10 * (10_000 / max(examples, 1)) ** 0.4)
    return {"trainer.batch_size": min(max(batch, 16), 256), "trainer.epochs": float(min(max(epochs, 2), 40))}


def take_open_keys(raw: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`raw` without the keys whose value is `auto`, and the names of those."""
    open_keys = []
    for key in KEYS:
        section, _, name = key.partition(".")
        part = raw.get(section)
        if isinstance(part, dict) and part.get(name) == AUTO:
            raw = raw | {section: {k: v for k, v in part.items() if k != name}}
            open_keys.append(key)
    if isinstance(trainer := raw.get("trainer"), dict) and trainer.get("steps") is not None:
        open_keys = [key for key in open_keys if key != "trainer.epochs"]  # which says nothing then
    return raw, tuple(open_keys)


def kind_of(config: Any) -> str:
    """What recipes are for: an encoder; `pretrained`, a transformer that starts from given weights; or `features`,
    whatever reads them."""
    if config.data.source == "features":
        return "features"
    encoder = config.encoder
    return "pretrained" if encoder.name == "transformer" and encoder.weights else str(encoder.name)


def row_of(config: Any) -> dict[str, Recipe]:
    """The recipes for the encoder and the loss of a configuration; empty where there are none, as for a mixture."""
    if config.data.source == "mixture":
        return {}
    return RECIPES.get((kind_of(config), LOSSES[config.loss.name].learns_from), {})


def name_recipe(config: Any, recipe: str | None, open_keys: Iterable[str]) -> Any:
    """`config` with the recipe that is asked for (None: the default) and the keys that it has to choose.

    Raises `UserError` for a recipe that there is not.
    """
    row = row_of(config)
    concerned = {*SIZE_KEYS, *(key for one in row.values() for key in one.keys)}
    if config.optimizer.name == "sgd":
        concerned.discard("optimizer.adaptivity")  # it has none
    open_keys = tuple(key for key in open_keys if key in {*concerned, *EVALUATION_KEYS}) if row else ()
    if recipe is None:
        is_tried = config.data.source in TRIED and concerned <= {*open_keys}
        recipe = "none" if not open_keys else "auto" if is_tried else "fixed"
    one_of("recipe", recipe, ("auto", "fixed", "none", *row))
    return dataclasses.replace(config, recipe=recipe, open_keys=() if recipe == "none" else open_keys)


def sized_as(config: Any, keys: dict[str, Any]) -> str:
    """The kind of encoder whose sizes suit a recipe: on frozen weights one layer learns, as on features."""
    if kind_of(config) != "pretrained":
        return kind_of(config)
    is_frozen = keys["encoder.frozen"] if "encoder.frozen" in config.open_keys else config.encoder.frozen
    return "features" if is_frozen else "pretrained"


def resolve(config: Any, name: str, examples: int, unit: int = 1) -> Any:
    """`config` with the values of a recipe for the keys that are open; batches are a multiple of `unit`."""
    keys = row_of(config)[name].keys
    sized = by_size(sized_as(config, keys), examples, LOSSES[config.loss.name].learns_from)
    sized["trainer.batch_size"] = math.ceil(sized["trainer.batch_size"] / unit) * unit
    chosen = keys | sized | (EVALUATION_KEYS if len(config.arms) == 1 else {})
    return assign(config, {key: value for key, value in chosen.items() if key in config.open_keys})


def assign(config: Any, values: dict[str, Any]) -> Any:
    """`config` with these keys of its sections set, and nothing left to choose."""
    for key, value in values.items():
        section, _, field = key.partition(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return dataclasses.replace(config, recipe="none", open_keys=())


def values(config: Any, keys: Iterable[str]) -> dict[str, Any]:
    """The values of these keys of its sections."""
    return {key: getattr(getattr(config, key.partition(".")[0]), key.partition(".")[2]) for key in keys}
