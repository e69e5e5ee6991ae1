"""Classify the texts of a file with a trained model: a JSON object per text, in order.

    python -m mrl_jax.predict results/newsgroups/latest texts.jsonl --out labels.jsonl
    python -m mrl_jax.predict results/newsgroups/latest texts.csv --dim 64 --top-k 3 --out labels.jsonl
    python -m mrl_jax.predict results/newsgroups/latest texts.jsonl --cascade --out labels.jsonl
    … | python -m mrl_jax.predict results/newsgroups/latest - --out - | …

    {"id": "d7", "label": "sci.space", "probability": 0.934127, "dims": 64}

Texts are the column `text` of JSONL, CSV, TSV or Parquet, with an id in `_id` or `id` if there is one, or the lines of
a .txt file; `-` is JSONL from standard input. A model of features reads .npy, or `features` in a .npz. `dims` is the
length of the prefix that answered; --layers and --hidden use a part of the encoder, of runs with `nesting_layers` or
`nesting_hidden`. Probabilities are calibrated on the validation split of the run, or on texts of your own with
--calibrate. The output appears under its name when it is whole; stopped before, the same command continues it from
OUT.partial, to the same bytes. Exit status: 0 done, 2 a mistake, 130 interrupted.
"""

import argparse
import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import mrl_jax
from mrl_jax import runs
from mrl_jax.data.readers.texts import Id, Inputs
from mrl_jax.data.sources import files as labelled_files
from mrl_jax.evaluate.nested_classifier import NestedClassifier, Predictions
from mrl_jax.model import EmbeddingModel
from mrl_jax.system import console
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import ResumableFile

BLOCK_ROWS = 1024  # texts that are read, embedded and written together; a kill loses no more
PROBABILITY_DIGITS = 6


def predict(options: argparse.Namespace) -> None:
    """Classify what is not done yet."""
    if options.out != "-" and Path(options.out).suffix.lower() not in (".jsonl", ".ndjson"):
        raise UserError(f"--out={options.out} is not allowed; a file ending in .jsonl or .ndjson, or -")
    model = mrl_jax.load(options.run, options.arm, options.seed).part(options.layers, options.hidden)
    try:
        answering = classifier(model, options)
    except ValueError as error:  # of the library: dim, epsilon or delta
        raise UserError(str(error)) from None
    inputs = Inputs("input", options.input, runs.read_dataset(runs.find(options.run))["kind"])
    if options.out == "-":
        write(sys.stdout.buffer, answering, inputs, options.top_k, 0)
    else:
        rule = answering.rule
        origin = {
            "input": inputs.digest or secrets.token_hex(),  # standard input may be another each time
            "model": model.fingerprint,
            "classifier": [answering.dims, rule.kind, rule.temperatures, rule.thresholds.tolist()],
            "--top-k": options.top_k,
        }
        with ResumableFile(Path(options.out), origin) as out:
            kept = keep_lines(out)
            if kept:
                console.say(f"{out.partial}: continued after {kept:,} texts")
            write(out.file, answering, inputs, options.top_k, kept)
            out.finish()
    if inputs.empty:
        console.say(f"empty texts: {inputs.empty:,}; their labels say nothing")
    if model.unknown:
        console.say(f"texts without a token that the model knows: {model.unknown:,}; their labels say nothing")


def classifier(model: EmbeddingModel, options: argparse.Namespace) -> NestedClassifier:
    """The one that the options ask for. Says on standard error what is wanting in it."""
    if not options.cascade and (options.epsilon, options.delta) != (None, None):
        raise UserError("--epsilon and --delta go with --cascade")
    if options.calibrate is not None:
        rows = labelled_files.rows("--calibrate", options.calibrate)
        model.calibrate([row.text for row in rows], [row.label for row in rows])
    if options.cascade:
        answering = model.cascade(
            0.01 if options.epsilon is None else options.epsilon, 0.1 if options.delta is None else options.delta
        )
        if not answering.rule.certified:
            console.say(f"no cascade can be certified: all {answering.dims[-1]} dims are read of every text")
    else:
        answering = model.classifier(options.dim)
    if not answering.calibrated:
        why = "it is not a trained dim" if model.calibration else "this run is of a version that did not calibrate"
        if (options.layers, options.hidden) != (None, None):
            why = "the held-out answers of the run are those of the whole encoder"
        console.say(f"the probabilities at dim={answering.dims[0]} are not calibrated: {why}")
    return answering


def keep_lines(out: ResumableFile) -> int:
    """Drop what follows the last whole line; returns how many lines there are."""
    count = size = 0
    for line in out.file:
        if line.endswith(b"\n"):
            count, size = count + 1, size + len(line)
    out.cut(size)
    return count


def write(file: IO[bytes], answering: NestedClassifier, inputs: Inputs, top_k: int, kept: int) -> None:
    """Write a line per input after the first `kept`."""
    start = kept - kept % BLOCK_ROWS  # in blocks of the same texts as ever, whose last digits are the same
    shown = False if file is sys.stdout.buffer else None
    done = start
    for block in answering.predict_stream(inputs.rest(start), show_progress=shown, chunk_size=BLOCK_ROWS):
        lines = list(to_lines(block, inputs.take_ids(len(block.names)), answering.classes, top_k))
        file.write("".join(lines[max(0, kept - done) :]).encode())
        file.flush()
        done += len(lines)


def to_lines(answers: Predictions, ids: list[Id], classes: tuple[str, ...], top_k: int) -> Iterator[str]:
    """A line of JSON per input."""
    best = (-answers.probabilities).argsort(axis=1, kind="stable")[:, :top_k]
    for id_, dims, p, order in zip(ids, answers.dims.tolist(), answers.probabilities, best, strict=True):
        probabilities = [round(value, PROBABILITY_DIGITS) for value in p[order].tolist()]
        names = [classes[i] for i in order]
        line: dict[str, Any] = {} if id_ is None else {"id": id_}
        line |= {"label": names[0], "probability": probabilities[0], "dims": dims}
        if top_k > 1:
            line |= {"labels": names, "probabilities": probabilities}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    console.add_model(parser)
    parser.add_argument("input", help=".jsonl, .csv, .tsv, .parquet or .txt; .npy or .npz of features; - for JSONL")
    parser.add_argument("--out", required=True, help="a new .jsonl file, or - for standard output")
    reads = parser.add_mutually_exclusive_group()
    reads.add_argument("--dim", type=int, help="prefix length, by default the largest that was trained")
    reads.add_argument("--cascade", action="store_true", help="read few dims, and more where the answer is not sure")
    console.add_parts(parser)
    parser.add_argument("--epsilon", type=console.share, help="accuracy that the cascade may lose, as a share (0.01)")
    parser.add_argument("--delta", type=console.share, help="probability with which it may lose more (0.1)")
    parser.add_argument("--top-k", type=console.positive, default=1, help="classes per text with their probabilities")
    parser.add_argument("--calibrate", metavar="FILE", help="held-out texts with labels, to calibrate on")
    return console.run(
        parser, predict, arguments, interrupted="interrupted; the same command continues a file", place="out"
    )


if __name__ == "__main__":
    sys.exit(main())
