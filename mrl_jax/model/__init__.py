"""Use a trained run: `mrl_jax.load(run).encode(texts, dim=64)`."""

import dataclasses
from pathlib import Path

import jax

from mrl_jax import arms, encoders, runs, tasks
from mrl_jax import config as configuration
from mrl_jax.data.prompts import Prompts
from mrl_jax.model.embedding_model import EmbeddingModel
from mrl_jax.runs import checkpoint
from mrl_jax.system.errors import UserError, one_of

__all__ = ["EmbeddingModel", "load"]


def load(run: str | Path, arm: str | None = None, seed: int = 0, dtype: str = "float32") -> EmbeddingModel:
    """The best model of one member of a run.

    Args:
        run: a run directory, or the folder of an experiment, whose latest run is loaded; of a run on several sources,
            sources/NAME in it for the classifiers and prompts of that one, where it is not the only one with classes,
            or its texts had another prompt.
        arm: `mrl`, `mrl_e`, `ff64`, … as in the folder's checkpoints; by default the first arm of the run.
        seed: which seed of that arm.
        dtype: of the operands of the encoder's matmuls, whatever it was trained with: float32 or bfloat16, by which an
            embedding moves by about 1e-3.

    Returns:
        The model with the best validation accuracy of that member.

    Raises:
        UserError: the run, arm or seed does not exist, the dtype is another, or a file is damaged.
    """
    one_of("dtype", dtype, ("float32", "bfloat16"))
    directory, source = runs.run_of(runs.find(run))
    config = configuration.from_yaml(directory / "config.yaml")
    dataset = runs.read_dataset(directory)
    if dataset.get("zero_shot"):
        raise UserError(f"{directory} is an evaluation and has no model of its own; give the model that was evaluated")
    by_label = {a.label: a for a in config.population}
    if not by_label:
        raise UserError(f"{directory} has no trained model; its arms are {', '.join(config.arms)}")
    chosen = by_label[one_of("arm", arm or next(iter(by_label)), by_label)]
    if not 0 <= seed < config.seeds:
        raise UserError(f"seed={seed} is not in {directory}; allowed: 0…{config.seeds - 1}")
    label = arms.Member(chosen, seed).label
    folder = directory / "checkpoints" / label / "model"
    if not (steps := checkpoint.saved_steps(folder)):
        raise UserError(f"{label} has no finished model in {directory}; continue that run with resume=true")
    stored = configuration.stored_encoder(dataset["encoder"])
    encoder = encoders.with_dtype(configuration.build_encoder(stored, cls=type(config.encoder)), dtype)
    sources = dataset.get("sources", {})
    if names := (set(configuration.parts(config)) ^ set(sources)) | ({source} - {None, *sources}):
        raise UserError(f"{directory} is damaged: not all of its files know the sources {', '.join(map(str, names))}")
    program = tasks.train_step(dataclasses.replace(config, encoder=encoder), dataset)
    weights, _ = checkpoint.load(folder, steps[-1], jax.eval_shape(program.init, 0).model)
    reader, dims = encoders.load(encoder, directory, dataset["kind"]), chosen.trained(config.nesting_dims)
    prompts = Prompts(sources.get(source, dataset)["prompts"])
    labelled = [name for name, of in sources.items() if of["classes"]]
    if source is None and len(labelled) == 1 and Prompts(sources[labelled[0]]["prompts"]).of() == prompts.of():
        source = labelled[0]  # only then are texts read as its classifiers were trained
    classes = sources.get(source, dataset)["classes"]
    file = (runs.folder(directory, source) if source else directory) / "checkpoints" / label / "calibration.npz"
    calibration = runs.read_calibration(file, dims) if classes else None
    sizes = chosen.trained_sizes(program.layers, program.hidden)
    return EmbeddingModel(program, weights, reader, dims, chosen.head, classes, calibration, prompts, source, sizes)
