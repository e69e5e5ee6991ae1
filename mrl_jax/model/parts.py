"""A part of a trained model, a model like any other: the first layers of its encoder, and the first hidden units."""

import sys
from typing import TYPE_CHECKING

from mrl_jax.encoders import slices
from mrl_jax.system.errors import UserError

if TYPE_CHECKING:
    from mrl_jax.model.embedding_model import EmbeddingModel

WHAT = ("layers", "hidden")


def cut(model: "EmbeddingModel", layers: int | None, hidden: int | None) -> "EmbeddingModel":
    """The model whose encoder has so many layers, and so many hidden units in the feed-forward of each (None: all).

    It is made once, and the rest is not in it. Its classifiers are those of the whole, but not its calibration. Raises
    `UserError` where there are not so many; numbers that were not trained are named on standard error.
    """
    program, given = model.program, (layers, hidden)
    if given == (None, None):
        return model
    whole = slices.sizes(program.encoder)
    if whole is None:
        key, value = next((key, size) for key, size in zip(WHAT, given, strict=True) if size is not None)
        raise UserError(f"{key}={value} is not for encoder={program.encoder.name}, of which no part can be left out")
    for key, size, most in zip(WHAT, given, whole, strict=True):
        if size is not None and not (type(size) is int and 1 <= size <= most):
            raise UserError(f"{key}={size} is not allowed; 1 to {most}, all that the encoder has")
    chosen = (whole[0] if layers is None else layers, whole[1] if hidden is None else hidden)
    if chosen == whole:
        return model
    if chosen not in model.parts:
        for key, kept, most, trained in zip(WHAT, chosen, whole, model.sizes, strict=True):
            if kept not in (trained or (most,)):
                were = ", ".join(map(str, trained or (most,)))
                print(f"{key}={kept} was not trained; a loss was taken with {key}={were}", file=sys.stderr)
        model.parts[chosen] = type(model)(
            program.part(*chosen),
            program.cut(model.weights, *chosen),
            model.reader,
            model.dims,
            model.head,
            model.classes,
            None,  # the answers to the validation split are of the whole
            model.prompts,
            model.source,
            (tuple(n for n in model.sizes[0] if n <= chosen[0]), tuple(n for n in model.sizes[1] if n <= chosen[1])),
        )
    return model.parts[chosen]
