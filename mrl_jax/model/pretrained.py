"""The model that a word of a command means: a trained run, or pretrained weights as they are."""

from mrl_jax import encoders, model, runs
from mrl_jax.config import LossConfig, OptimizerConfig
from mrl_jax.encoders import EncoderConfig, huggingface, static_tables
from mrl_jax.encoders.pretrained import PRETRAINED, TABLES
from mrl_jax.encoders.static import StaticConfig
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.model import EmbeddingModel
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import path_of
from mrl_jax.tasks.pair_objectives import ContrastiveObjective
from mrl_jax.training.step import TrainStep

KNOWN = PRETRAINED | TABLES  # names of weights


def is_run(name: str) -> bool:
    """Whether a word of a command means a trained run, or the folder of some."""
    path = path_of("MODEL", name)
    if path.suffix.lower() == ".npz" or name in KNOWN:  # whatever lies in this folder, as for encoder.weights
        return False
    return any((folder / "config.yaml").is_file() for folder in (path, path / "latest")) or bool(runs.names_below(path))


def kind_of(name: str) -> str:
    """What a command gives a model: text, image or features; text where it reads captions and pictures."""
    kind = str(runs.read_dataset(runs.find(path_of("MODEL", name)))["kind"]) if is_run(name) else "text"
    return "text" if kind == "image-text" else kind


def find(name: str, arm: str | None = None, seed: int = 0) -> EmbeddingModel:
    """A model of texts: a member of a run, or pretrained weights. Raises `UserError` for what is neither."""
    if (kind := kind_of(name)) != "text":
        raise UserError(f"{name} is a model of {kind}, and the data are texts")
    return find_any(name, arm, seed)


def find_any(name: str, arm: str | None = None, seed: int = 0) -> EmbeddingModel:
    """As `find`, also a model of images or features."""
    if is_run(name):
        return model.load(runs.find(path_of("MODEL", name)), arm, seed)
    if arm or seed:
        key = f"--arm={arm}" if arm else f"--seed={seed}"
        raise UserError(f"{key} chooses a model of a trained run, and {name} is none")
    return pretrained(name)


def pretrained(weights: str) -> EmbeddingModel:
    """Pretrained weights as they are, as a model. Raises `UserError` where they cannot be had."""
    path = path_of("MODEL", weights)
    is_folder = weights not in KNOWN and path.is_dir()
    is_path = weights.count("/") > 1 or weights[:1] in "./~" or ("/" in weights and path.parent.is_dir())
    if weights not in KNOWN and not path.exists() and is_path:  # else it may be a name of the hub
        raise UserError(f"{weights} is no model: there is no such folder")
    if is_folder and not any((path / file).exists() for file in ("config.json", "modules.json")):
        raise UserError(
            f"{weights} is no model: it has neither config.yaml, as a run has, nor config.json, as a model folder has"
        )
    width, encoder = static_tables.width_of(weights), _untuned(weights)
    reader, prompts = encoders.fit(encoder, weights, "text", []), encoders.prompts(encoder, None)
    program = TrainStep(
        encoder=encoder,
        inputs={name: array.shape[1:] for name, array in reader(["text"]).items()},
        vocabulary=reader.vocabulary,
        width=width,
        objective=ContrastiveObjective((width,), 2, LossConfig(name="info_nce")),
        optimizer_config=OptimizerConfig(),
        steps=1,
    )
    dims = tuple(range(1, width + 1))  # none is trained, so none is named as the nearest that is
    return EmbeddingModel(program, program.init(0).model, reader, dims, "separate", prompts=prompts)


def _untuned(weights: str) -> EncoderConfig:
    """The encoder whose weights these are: a table of token vectors, or a transformer."""
    if static_tables.files_of(weights, "MODEL") is not None:
        return StaticConfig(weights=weights)
    described = huggingface.describe(huggingface.resolve(weights))
    return TransformerConfig(weights=weights, max_length=described.max_length)
