"""Two towers are exported as two models, each in a folder of its own: `text` and `image`, with one space between them.

A tower by itself is an embedding model of one kind of data, and is written and checked as any other. A rotation is a
part of both, the same one (see `rotation`).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from mrl_jax.data.prompts import NO_PROMPTS
from mrl_jax.encoders.towers import SIDES, TowersConfig
from mrl_jax.export.folder import say_dims, write_json
from mrl_jax.model import EmbeddingModel

Write = Callable[[EmbeddingModel, Path, str], tuple[str, str]]  # as `Format.write`
NOTE = (
    "`text` and `image` are two models of one space: a picture is found by the cosine of its embedding and that of the "
    "words. `image/images.json` says how pictures become the arrays that the model of pictures is given: resized "
    "(`how`, `size`, and `resample`, a filter by Pillow's number), then the centre of `crop` cut out, in uint8."
)


def sides(model: EmbeddingModel) -> dict[str, EmbeddingModel]:
    """The model of each tower of two, by itself."""
    program, weights = model.program, model.weights
    assert isinstance(program.encoder, TowersConfig)
    found = {}
    for side in SIDES:
        names = [name for name in program.inputs if (name == "image") == (side == "image")]
        alone = dataclasses.replace(
            program,
            encoder=getattr(program.encoder, side),
            inputs={name: program.inputs[name] for name in names},
            vocabulary=program.vocabulary if side == "text" else 0,
        )
        own = weights._replace(
            params={"encoder": weights.params["encoder"][side]}, statistics=weights.statistics.get(side, {})
        )
        prompts = model.prompts if side == "text" else NO_PROMPTS
        reader = getattr(model.reader, side)
        found[side] = EmbeddingModel(alone, own, reader, model.dims, model.head, prompts=prompts)
    return found


def write(model: EmbeddingModel, folder: Path, name: str, write_one: Write) -> tuple[str, str]:
    """Write both towers by `write_one`; returns the examples of use, and the outcome of each."""
    made = {side: write_one(of, folder / side, f"{name}/{side}") for side, of in sides(model).items()}
    width, encoder = model.program.width, model.program.encoder.name
    write_json(folder / "config.json", say_dims(model) | {"width": width, "encoder": encoder, "towers": list(SIDES)})
    usage = "\n".join(
        f"# {'texts' if side == 'text' else 'pictures'}\n{example}" for side, (example, _) in made.items()
    )
    return usage, ", ".join(f"{side}: {outcome}" for side, (_, outcome) in made.items())
