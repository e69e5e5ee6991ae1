"""A trained model as a function of the arrays that an exported one is given, and the comparison of the two."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from mrl_jax import encoders
from mrl_jax.encoders import ENCODERS
from mrl_jax.encoders.scaler import Scaler
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from mrl_jax.training.step import TrainStep, Weights

TOLERANCE = 1e-4  # largest difference of an exported model, relative to the largest coordinate
CHECKED_TOKENS = (5, 0, 40, 900)  # lengths of the random texts that an exported model is compared on
DTYPES = {"image": "uint8", "features": "float32"}  # of inputs that are not texts

Signature = dict[str, tuple[str, tuple[str | int, ...]]]


def cpu() -> jax.Device:
    """Exports are made and checked on the CPU, where float32 matmuls are exact; other devices round by default."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError("an export is checked on the CPU, which JAX_PLATFORMS leaves out; add cpu to it") from None


def full_precision(model: EmbeddingModel) -> tuple[TrainStep, Weights]:
    """The program with float32 operands, and the weights of the encoder alone."""
    program, encoder = model.program, model.program.encoder
    if (exact := encoders.with_dtype(encoder, "float32")) != encoder:
        program = dataclasses.replace(program, encoder=exact)
    weights = Weights({"encoder": model.weights.params["encoder"]}, model.weights.statistics)
    return program, jax.device_put(weights, cpu())


def signature(model: EmbeddingModel) -> Signature:
    """Name → (dtype, shape) of each array that an exported model is given, in order."""
    if model.reader.tokenizer is not None:
        return dict.fromkeys(("input_ids", "attention_mask"), ("int64", ("batch", "length")))
    return {name: (DTYPES[name], ("batch", *shape)) for name, shape in model.program.inputs.items()}


def embedder(model: EmbeddingModel) -> Callable[..., jax.Array]:
    """The function from the arrays of `signature` to the embedding, float32 [batch, D], with its weights inside."""
    program, weights = full_precision(model)
    names, module_inputs = list(signature(model)), ENCODERS[program.encoder.name].module_inputs

    def embed(*arrays: jax.Array) -> jax.Array:
        return program.embed(weights, module_inputs(model.reader, dict(zip(names, arrays, strict=True))))

    return embed


def largest_difference(
    model: EmbeddingModel,
    tokenizer: Tokenizer | None,
    run: Callable[..., np.ndarray],
    tolerance: float = TOLERANCE,
) -> str:
    """Compare an exported model with the one that it was made from, on a few inputs of several lengths.

    Args:
        model: the trained model.
        tokenizer: pads a batch of texts; None where the inputs are not texts.
        run: the exported model, from the arrays of `signature` to [batch, D].
        tolerance: the largest difference that is allowed, relative to the largest coordinate.

    Returns:
        The largest difference, in a phrase.

    Raises:
        UserError: the exported model computes something else.
    """
    program, weights = full_precision(model)
    embed, worst = jax.jit(program.embed), 0.0
    random = np.random.default_rng(0)
    for lengths in (CHECKED_TOKENS, CHECKED_TOKENS[:1]):
        if tokenizer is not None:
            ids = (random.integers(tokenizer.get_vocab_size(), size=n).tolist() for n in lengths)
            raw: Any = [tokenizer.decode(row) for row in ids]
            encodings = tokenizer.encode_batch(raw)
            arrays = [np.array([e.ids for e in encodings]), np.array([e.attention_mask for e in encodings])]
            inputs = model.reader(raw)
        else:
            dtype, shape = next(iter(signature(model).values()))
            values = random.normal(size=(len(lengths), *map(int, shape[1:])))
            if isinstance(model.reader, Scaler):
                values = model.reader.undo(values)
            raw = values.astype(np.float32) if dtype == "float32" else (values * 64 + 128).clip(0, 255).astype(np.uint8)
            arrays = [raw]
            inputs = {"image": raw} if dtype == "uint8" else model.reader(raw)  # images are given as they are prepared
        expected, exported = np.asarray(embed(weights, inputs)), run(*arrays)
        worst = max(worst, float(np.abs(exported - expected).max() / max(np.abs(expected).max(), 1e-12)))
    if not worst <= tolerance:  # NaN too
        raise UserError(f"the exported model differs from the run by {worst:.1e}, more than {tolerance}: not written")
    return f"largest difference to the run {worst:.1e} of the largest coordinate"
