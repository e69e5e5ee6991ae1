"""The model card of an exported model: what it is, how to use it, its quality at each dim, how it was trained."""

import dataclasses
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mrl_jax import arms, runs
from mrl_jax import config as configuration
from mrl_jax.arms import ARMS
from mrl_jax.encoders.pretrained import PRETRAINED, TABLES
from mrl_jax.evaluate.metrics import find, ordered
from mrl_jax.export.folder import typical_dim
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError

OF_PART = re.compile(r"(layer|hidden)\d+_")  # what the metrics of a part of the encoder begin with
KINDS = {"text": "texts", "image": "images", "features": "feature vectors", "image-text": "texts and images"}


def card(
    directory: Path,
    model: EmbeddingModel,
    arm: str | None,
    seed: int,
    *,
    library: str,
    tags: Sequence[str],
    note: str,
    usage: str,
    rotated: bool = False,
    part: tuple[int | None, int | None] | None = None,
) -> str:
    """README.md: front matter, what the model is, how to use it, its quality at each dim and how it was trained.

    Args:
        directory: of the run.
        model: the member of the run that is exported.
        arm: its arm; None: the run's first.
        seed: its seed.
        library: which reads the export.
        tags: of the front matter, before those of every export.
        note: a paragraph below the example of use.
        usage: the example of use, Python.
        rotated: whether its prefixes are principal directions, which is not what the run measured.
        part: how many of the encoder's layers and of the hidden units of each it has, None: all; None: it is whole.
    """
    config = configuration.from_yaml(directory / "config.yaml")
    dataset = runs.read_dataset(directory)
    members = {a.label: a for a in config.population}
    member = members[arm or next(iter(members))]
    dims = ", ".join(map(str, model.dims))
    weights = getattr(config.encoder, "weights", None)
    known = (PRETRAINED | TABLES).get(weights) if weights else None
    base = known.hub if known else weights
    kind = KINDS.get(dataset["kind"], dataset["kind"])
    front: dict[str, Any] = {"library_name": library}
    front["tags"] = [*tags, "feature-extraction", "matryoshka", "mrl_jax"]
    front |= {"pipeline_tag": "sentence-similarity"} if kind != KINDS["image-text"] and model.reader.tokenizer else {}
    front |= {"base_model": base} if base and not Path(base).expanduser().exists() else {}
    about = [
        f"[Matryoshka embeddings](https://arxiv.org/abs/2205.13147) of {kind}: {model.program.width} coordinates, "
        f"encoder {config.encoder.name}, trained with mrl_jax on {dataset.get('name', config.data.source)}"
        f"{_sizes(dataset)} with a loss at {dims} dims.",
    ]
    if max(model.dims) < model.program.width:
        about.append(f"No loss was taken beyond {max(model.dims)} dims: the coordinates after them mean nothing.")
    elif len(model.dims) > 1:
        about.append("A prefix of one of these lengths, scaled to unit length, is an embedding too.")
    if rotated:
        about.append(
            "It was rotated after training: its prefixes are the principal directions of the training embeddings, the "
            "better shortlists, and the qualities below hold at full width alone."
        )
    named = zip(part or (), ("layer", "hidden unit"), strict=False)
    if kept := [f"the first {size} {what}{'s' * (size > 1)}" for size, what in named if size is not None]:
        about.append(f"Of the encoder that was trained it has {' and '.join(kept)}, without the rest.")
    if known:
        about.append(f"It started from [{base}](https://huggingface.co/{base}), {known.licence}.")
    if model.prompts.texts:
        listed = (f"{name} {json.dumps(text, ensure_ascii=False)}" for name, text in model.prompts.texts.items())
        about.append(f"Prompts before texts, by use: {', '.join(listed)}.")
    if getattr(config.encoder, "dtype", "float32") != "float32":
        about.append("Trained with bfloat16 operands of matmuls, exported in float32: the last digits differ.")
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {config.name}: {ARMS[member.name].label}{f' {member.width}' if member.width else ''}",
        " ".join(about),
        f"## Use\n\n```python\n{usage}```\n\n{note} Any of {dims} dims may take the place of {typical_dim(model)}.",
        "## Quality on the test split",
        *(
            (f"{place.name}:\n\n" if place != directory else "") + _quality(place, member, seed, model.dims, part)
            for place in runs.folders(directory)
        ),
        "## Training\n\n" + _training(directory, config),
    ]
    return "\n\n".join(parts) + "\n"


def _sizes(dataset: dict[str, Any]) -> str:
    counts = [f"{dataset['examples']['train']:,} training examples"] if dataset.get("examples") else []
    counts += [f"{len(dataset['classes'])} classes"] if dataset["classes"] else []
    return f" ({', '.join(counts)})" if counts else ""


def _quality(
    directory: Path, member: arms.Arm, seed: int, dims: Sequence[int], of: tuple[int | None, int | None] | None
) -> str:
    """The metrics of the exported member, or of the part of it that is; where its arm has several seeds, their mean in
    brackets."""
    layers, hidden = of or (None, None)
    names = [f"{name}{size}_" for name, size in (("layer", layers), ("hidden", hidden)) if size is not None]
    own: dict[tuple[int, str], float] = {}
    every = defaultdict(list)
    for row in runs.read_rows(directory / "evaluation.csv"):
        compressed, part = row.metric.startswith(("int8_", "bit_")), OF_PART.match(row.metric)
        if ([part[0]] if part else []) != names or compressed:
            continue
        if row.arm == member.name and row.split == "test" and member.width in (None, row.dim):
            metric = row.metric[part.end() :] if part else row.metric
            every[row.dim, metric].append(row.value)
            if row.seed == seed:
                own[row.dim, metric] = row.value
    if not own:
        return f"The run has no evaluation {'of this part ' if names else ''}on a test split."
    known = ordered(metric for _, metric in own)
    main = [metric for metric in known if (entry := find(metric)) and entry.printed]
    metrics = [*main, *(metric for metric in known if metric not in main)]
    lines = ["| dims | " + " | ".join(metrics) + " |", "|---:" * (len(metrics) + 1) + "|"]
    for dim in sorted({dim for dim, _ in own}):
        cells = []
        for metric in metrics:
            value, values = own.get((dim, metric)), every[dim, metric]
            mean = f" ({np.mean(values):.4f})" if len(values) > 1 else ""
            cells.append("–" if value is None else f"{value:.4f}{mean}")
        lines.append(f"| {dim}{'' if dim in dims else ' †'} | " + " | ".join(cells) + " |")
    notes = ["† no loss was taken at these dims."] if any(dim not in dims for dim, _ in own) else []
    seeds = max(map(len, every.values()))
    notes += [f"Seed {seed}, in brackets the mean over {seeds} seeds."] if seeds > 1 else []
    return "\n".join(lines) + ("\n\n" + " ".join(notes) if notes else "")


def _training(directory: Path, config: configuration.Config) -> str:
    """The command, the versions and the whole configuration, without paths of the machine that it ran on."""
    try:
        environment = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
        program, *words = environment["command"]
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
        made_with = [f"Python {environment['python']}, {versions}; {', '.join(environment['devices'])}."]
        changed = " with uncommitted changes" if environment.get("git_changes") else ""
        made_with += [f"Commit {environment['git_commit']}{changed}."] if environment["git_commit"] else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory / 'environment.json'} cannot be read: {error!r}") from None
    portable = [word for word in words if not word.startswith(("run=", "results_dir=", "resume="))]
    command = f"```bash\npython -m mrl_jax.train {shlex.join(portable)}\n```\n\n" if program == "train.py" else ""
    placeless = dataclasses.replace(config, run=None, results_dir="results", resume=False)
    shown = f"<details><summary>Configuration</summary>\n\n```yaml\n{configuration.to_yaml(placeless)}```\n\n</details>"
    return f"{command}{' '.join(made_with)}\n\n{shown}"
