"""Embed the texts of a file with a trained model, or with pretrained weights as they are: a row per text, in order.

    python -m mrl_jax.embed results/newsgroups/latest texts.jsonl --dim 64 --out z.npy
    python -m mrl_jax.embed results/newsgroups/latest texts.csv --dim 64 --dtype int8 --out z.parquet
    python -m mrl_jax.embed minilm texts.jsonl --prompt query --out z.npy

Inputs are those of `python -m mrl_jax.predict`. Rows are cut to --dim coordinates and then scaled to unit length.
--layers and --hidden use a part of the encoder, of runs with `nesting_layers` or `nesting_hidden`.
--prompt names what the model has before each text: by default its default prompt, if it has one.

    float32   as they are
    int8      −127 … 127; codes × scale are the coordinates, and OUT.scale.npy holds the scale of each
    binary    the sign of each coordinate, eight per byte as sentence-transformers' `ubinary`

.npy is an array [n, dim], of bytes [n, ⌈dim / 8⌉] for binary; .parquet has the columns id (null where a text has none)
and embedding, a fixed-size list. The output appears under its name when it is whole; stopped before, the same command
continues it from OUT.partial, to the same bytes. Exit status: 0 done, 2 a mistake, 130 interrupted.
"""

import argparse
import io
import itertools
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrl_jax.data.readers.texts import Inputs
from mrl_jax.evaluate.quantised import int8_scale, to_bits, to_int8
from mrl_jax.model import pretrained
from mrl_jax.system import console, files
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import ResumableFile, keep_rows, npy_header

BLOCK_ROWS = 1024  # texts that are read, embedded and written together; a kill loses no more
ROWS_AT_ONCE = 1 << 16  # that are brought into another format together, a row group in Parquet


def embed(options: argparse.Namespace) -> None:
    """Embed what is not done yet."""
    suffix = Path(options.out).suffix.lower()
    if suffix not in (".npy", ".parquet"):
        raise UserError(f"--out={options.out} is not allowed; a file ending in .npy or .parquet")
    if suffix == ".parquet" and options.input == "-":
        raise UserError(f"--out={options.out}: ids are read again at the end, so input=- goes with .npy")
    model = pretrained.find_any(options.run, options.arm, options.seed).part(options.layers, options.hidden)
    model.prompts.of(options.prompt)
    dim = model.dims[-1] if options.dim is None else options.dim
    if not 1 <= dim <= model.program.width:
        raise UserError(f"--dim={dim} is outside 1…{model.program.width}, the width of these embeddings")
    inputs = Inputs("input", options.input, pretrained.kind_of(options.run))
    origin = {
        "input": inputs.digest or secrets.token_hex(),  # standard input may be another each time
        "model": model.fingerprint,
        "--dim": dim,
        "--dtype": options.dtype,
    } | ({} if options.prompt is None else {"--prompt": options.prompt})
    binary = options.dtype == "binary"
    width, dtype = (-(-dim // 8), np.dtype(np.uint8)) if binary else (dim, np.dtype(np.float32))
    with ResumableFile(Path(options.out), origin) as out:
        begin = npy_header(0, width, dtype)
        count = keep_rows(out, begin, width * dtype.itemsize)
        if count:
            console.say(f"{out.partial}: continued after {count:,} texts")
        done = count - count % BLOCK_ROWS  # in blocks of the same texts as ever, whose last digits are the same
        for z in model.encode_stream(inputs.rest(done), dim, chunk_size=BLOCK_ROWS, prompt=options.prompt):
            inputs.take_ids(len(z))
            new = z[max(0, count - done) :]
            out.file.write((to_bits(new) if binary else new).tobytes())
            out.file.flush()
            done += len(z)
        if not done:
            raise UserError(f"input={options.input} is empty")
        if suffix == ".npy" and options.dtype != "int8":
            out.file.seek(0)
            out.file.write(npy_header(done, width, dtype))
            out.finish()
        else:
            rows = np.memmap(out.partial, dtype, "r", len(begin), (done, width))
            out.finish(convert(rows, inputs, out, options.dtype))
    if inputs.empty:
        console.say(f"empty texts: {inputs.empty:,}")
    if model.unknown:
        console.say(f"texts without a token that the model knows: {model.unknown:,}; their rows are zero")


def convert(rows: np.ndarray, inputs: Inputs, out: ResumableFile, dtype: str) -> Path:
    """The rows in their type and format, in a file that is complete but for its name."""
    made, parts = out.path.with_name(f"{out.path.name}.partial.made"), rows
    starts = range(0, len(rows), ROWS_AT_ONCE)
    scale = None
    if dtype == "int8":
        scale = int8_scale(np.max([np.abs(rows[i : i + ROWS_AT_ONCE]).max(axis=0) for i in starts], axis=0))
        buffer = io.BytesIO()
        np.save(buffer, scale)
        files.write(out.path.with_suffix(".scale.npy"), buffer.getvalue())

    def blocks() -> Iterator[np.ndarray]:
        for i in starts:
            block = np.asarray(parts[i : i + ROWS_AT_ONCE])
            yield block if scale is None else to_int8(block, scale)

    if out.path.suffix.lower() == ".parquet":
        write_parquet(made, blocks(), inputs)
    else:
        with made.open("wb") as file:
            file.write(npy_header(len(rows), rows.shape[1], np.dtype(np.int8)))
            for block in blocks():
                file.write(block.tobytes())
    return made


def write_parquet(path: Path, blocks: Iterator[np.ndarray], inputs: Inputs) -> None:
    """A row group per block, with the columns id and embedding."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, writer = inputs.read_ids(), None
    try:
        for block in blocks:
            names = [None if id_ is None else str(id_) for id_ in itertools.islice(ids, len(block))]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), block.shape[1])
            table = pa.table({"id": pa.array(names, pa.string()), "embedding": vectors})
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    console.add_model(parser, untuned=True)
    parser.add_argument("input", help=".jsonl, .csv, .tsv, .parquet or .txt; .npy or .npz of features; - for JSONL")
    parser.add_argument("--out", required=True, help="a new file, .npy or .parquet")
    parser.add_argument("--dim", type=int, help="prefix length, by default the largest that was trained")
    console.add_parts(parser)
    parser.add_argument("--prompt", help="query, document or another that the model has before each text")
    parser.add_argument("--dtype", choices=("float32", "int8", "binary"), default="float32")
    return console.run(parser, embed, arguments, interrupted="interrupted; the same command continues", place="out")


if __name__ == "__main__":
    sys.exit(main())
