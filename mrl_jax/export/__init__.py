"""Export a trained run for other libraries: a folder with the weights, the tokenizer and a model card.

    python -m mrl_jax.export results/newsgroups_minilm/latest --to sentence-transformers minilm-news
    python -m mrl_jax.export results/newsgroups/latest        --to onnx                  news-onnx --arm mrl_e --seed 1
    python -m mrl_jax.export results/fashion_mnist/latest     --to stablehlo             fashion

    sentence-transformers   transformer, static      `SentenceTransformer(DIR, truncate_dim=64)`, also `transformers`
    transformers            vit                      a folder for `AutoModel` of transformers
    onnx                    all but convnet          model.onnx for any ONNX runtime
    onnx-int8               all but convnet          the same with weights in 8 bits: a quarter of the size
    stablehlo               every encoder            model.stablehlo for JAX without this package, on CPU, GPU and TPU

Every export maps inputs to the whole embedding [batch, D], as the classifiers of the run read it: float32 and not of
unit length, since a prefix has to be truncated first and normalised then. Text models take the token ids and mask that
tokenizer.json gives, for any batch and length; the tf-idf weights of a bag are computed inside. Whoever uses them puts
the prompts, which config.json names, before the texts. A model trained with bfloat16 operands is exported in float32.
Classifier heads are left out. Two towers become two models of one space, in the folders `text` and `image`, where each
of them can be written; images.json says how pictures are prepared. With --rotate the last layer is rotated first, so
that prefixes are the principal directions of the training embeddings (of pairs, those of the documents; of two towers,
those of both sides, in one rotation): the better shortlist, while inner products at full width stay as they are.
--layers and --hidden write a part of the encoder. An ONNX or StableHLO file is run on a few inputs and compared with
the model that it was made from before the folder appears under its name. Exit status: 0 done, 2 a mistake, 130
interrupted.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

import mrl_jax
from mrl_jax import runs
from mrl_jax.encoders import ENCODERS, EncoderConfig, EncoderType, TowersConfig
from mrl_jax.encoders.towers import SIDES
from mrl_jax.export import onnx, rotation, sentence_transformers, stablehlo, towers, vision
from mrl_jax.export.embedder import cpu
from mrl_jax.export.folder import check_empty, whole_or_absent
from mrl_jax.export.model_card import card
from mrl_jax.model import EmbeddingModel
from mrl_jax.system import console, files
from mrl_jax.system.errors import UserError, one_of


@dataclass(frozen=True)
class Format:
    """An entry of `FORMATS`."""

    write: Callable[[EmbeddingModel, Path, str], tuple[str, str]]  # (model, folder, its name) → example of use, outcome
    holds: Callable[[EncoderType[Any]], bool]  # whether an encoder can be written in it
    library: str  # which reads it, as the model card names it
    note: str  # on the model card, below the example of use
    limits: str = ""  # why some encoders cannot be written
    holds_towers: bool = True  # whether two towers can be written, each by itself
    tags: tuple[str, ...] = ()  # of the model card


FORMATS: dict[str, Format] = {
    "sentence-transformers": Format(
        write=sentence_transformers.write,
        holds=sentence_transformers.holds,
        library="sentence-transformers",
        note=sentence_transformers.NOTE,
        limits=sentence_transformers.LIMITS,
        tags=("sentence-transformers", "sentence-similarity"),
        holds_towers=False,
    ),
    "transformers": Format(vision.write, vision.holds, "transformers", vision.NOTE, vision.LIMITS, holds_towers=False),
    "onnx": Format(onnx.write, onnx.holds, "onnx", onnx.NOTE, onnx.LIMITS),
    "onnx-int8": Format(
        partial(onnx.write, int8=True), onnx.holds, "onnx", f"{onnx.NOTE} {onnx.INT8_NOTE}", onnx.LIMITS
    ),
    "stablehlo": Format(stablehlo.write, stablehlo.holds, "jax", stablehlo.NOTE),
}


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    arm: str | None = None,
    seed: int = 0,
    rotate: bool = False,
    layers: int | None = None,
    hidden: int | None = None,
) -> str:
    """Write one member of a run into the new folder `out`, in the format `to`.

    Args:
        run: a run directory, or an experiment's folder, which stands for its latest run.
        to: a key of `FORMATS`.
        out: a folder that does not exist or is empty; it appears when it is complete, or not at all.
        arm: `mrl`, `mrl_e`, `ff64`, …; the first arm of the run by default.
        seed: which seed of that arm.
        rotate: whether prefixes become principal directions, see `rotation`.
        layers, hidden: how many of the encoder's layers, and of the hidden units of each, are kept; the others are not
            in the files. None: all.

    Returns:
        What was done, in a sentence.

    Raises:
        UserError: no such run, arm, seed, format or part; a format that cannot hold this encoder; a package that is
            missing; or a folder that is not empty or cannot be written.
    """
    target = FORMATS[one_of("--to", to, FORMATS)]
    out = Path(out).expanduser().resolve()
    check_empty(out)
    whole = mrl_jax.load(run, arm, seed)
    check_format(to, whole.program.encoder)
    model = whole.part(layers, hidden)
    part = None if model is whole else (layers, hidden)
    config = model.program.encoder
    if rotate:
        with console.stage("rotating to the principal directions of the training data"):
            model = rotation.rotate(model, rotation.training_embeddings(run, model))
    with whole_or_absent(out) as folder, jax.default_device(cpu()):
        if isinstance(config, TowersConfig):
            usage, outcome = towers.write(model, folder, out.name, target.write)
        else:
            usage, outcome = target.write(model, folder, out.name)
        readme = card(
            runs.find(run),
            model,
            arm,
            seed,
            library=target.library,
            tags=target.tags,
            note=f"{towers.NOTE} {target.note}" if isinstance(config, TowersConfig) else target.note,
            usage=usage,
            rotated=rotate,
            part=part,
        )
        files.write(folder / "README.md", readme)
    return f"{out}: {to}, {outcome}"


def check_format(to: str, config: EncoderConfig) -> None:
    """Raise `UserError` for a format that cannot hold an encoder, or one of two towers, and name those that can."""
    parts = {"encoder": config}
    if isinstance(config, TowersConfig):
        parts = {f"encoder.{side}": getattr(config, side) for side in SIDES}

    def lacking(name: str) -> list[str]:
        one = FORMATS[name]
        alone = len(parts) == 1 or one.holds_towers
        return [key for key, part in parts.items() if not (alone and one.holds(ENCODERS[part.name]))]

    if not (keys := lacking(to)):
        return
    others = ", ".join(name for name in FORMATS if not lacking(name))
    if len(parts) > 1 and not FORMATS[to].holds_towers:
        raise UserError(f"--to={to} cannot hold the two towers of encoder={config.name}; allowed here: {others}")
    what = f"{keys[0]}={parts[keys[0]].name}"
    raise UserError(f"--to={to} cannot hold {what} ({FORMATS[to].limits}); allowed here: {others}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    console.add_model(parser)
    parser.add_argument("out", metavar="DIR", help="a new or empty folder")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    console.add_parts(parser)
    parser.add_argument("--rotate", action="store_true", help="prefixes are to be principal directions")

    def act(options: argparse.Namespace) -> None:
        print(
            export(
                options.run,
                options.to,
                options.out,
                options.arm,
                options.seed,
                options.rotate,
                options.layers,
                options.hidden,
            )
        )

    return console.run(parser, act, arguments, interrupted="interrupted; nothing was written", place="out")
