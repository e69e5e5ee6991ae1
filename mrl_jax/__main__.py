"""The commands of the package, listed by `python -m mrl_jax`."""

import sys
from collections.abc import Sequence

from mrl_jax.system.errors import nearest

COMMANDS = {
    "train": "train the arms of an experiment, evaluate them at every dim, and write tables and plots",
    "report": "compare runs: statistics, tables, plots and a page",
    "evaluate": "score any model on any collection, at every dim, without training",
    "predict": "classify the texts of a file with a trained model, in class names",
    "embed": "embed the texts of a file with a trained model, as .npy or Parquet",
    "search": "index documents with a trained model, query them, serve them over HTTP",
    "export": "a trained model as a folder for sentence-transformers, ONNX or StableHLO",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list; returns the exit status: 0, or 2 where a command was given that has to follow the dot."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in ("-h", "--help"):
        name = given[0]
        hint = f"; python -m mrl_jax.{name} is the command" if name in COMMANDS else nearest(name, COMMANDS)
        print(f"error: python -m mrl_jax takes no {name!r}{hint}", file=sys.stderr)
        return 2
    print("Matryoshka embeddings: train them, compare them, use them.\n")
    for name, purpose in COMMANDS.items():
        print(f"    python -m mrl_jax.{name:<9}{purpose}")
    print("\nEach says more with --help.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
