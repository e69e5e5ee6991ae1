"""Readers of models, of runs and of configurations."""

import json
from pathlib import Path

import numpy as np
from made_runs import config as made_config
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import mrl_jax
from mrl_jax import config as configuration
from mrl_jax import data, encoders, runs
from mrl_jax.encoders import families, huggingface
from mrl_jax.encoders.bag import BagConfig
from mrl_jax.runs import checkpoint
from mrl_jax.system import files
from mrl_jax.tasks import train_step
from mrl_jax.tasks.description import describe, read_splits

from .samples import WORDS, Reader, rows, write_table


def weights() -> Reader:

    sizes = families.Architecture(vocabulary=9, layers=1, hidden=4, heads=2, intermediate=6, positions=8)

    def make(folder: Path) -> list[str]:
        rng = np.random.default_rng(0)
        state = {}
        for path, name, shape in huggingface.tensors(sizes):
            state[name] = huggingface.convert(path, rng.normal(size=shape).astype(np.float32))
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(families.to_config(sizes)))
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
        kinds = ("Transformer", "Pooling")
        (folder / "modules.json").write_text(
            json.dumps([{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)])
        )
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6, "do_lower_case": True}))
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 7, "cls_token": "[UNK]"}))
        prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        return [
            *("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "modules.json"),
            *("sentence_bert_config.json", "tokenizer_config.json", "config_sentence_transformers.json"),
        ]

    def read(folder: Path) -> object:
        found = huggingface.describe(folder)
        huggingface.load(folder, found.architecture)
        tokenizer = huggingface.load_tokenizer(folder)
        ids = [id_ for one in tokenizer.encode_batch(["Orbit of a comet", "x\0y", ""]) for id_ in one.ids]
        assert max(ids, default=0) < found.architecture.vocabulary
        return ids

    return Reader(make, read)


def trained(folder: Path) -> Path:
    """A run with a model that has just been initialised, as `mrl_jax.train` leaves it; returns its directory."""

    given = {"train": folder / "train.jsonl", "test": folder / "test.jsonl"}
    for path in given.values():
        write_table(path, rows(16))
    config = configuration.from_command_line(
        ["data=files", *(f"data.{key}={path}" for key, path in given.items()), f"results_dir={folder}", "run=first",
         "name=made", "width=8", "nesting_dims=[4,8]", "encoder.min_documents=1"]
    )  # fmt: skip
    dataset = data.load(config.data)
    reader = encoders.fit(config.encoder, dataset.name, dataset.kind, dataset.train.inputs)
    splits = read_splits(config, dataset, reader)
    described = describe(config, dataset, reader, splits)
    directory = runs.claim(config)
    reader.save(directory)
    files.write(directory / "dataset.json", json.dumps(described))

    model = train_step(config, described).init(0).model
    checkpoint.save(directory / "checkpoints" / "mrl_e-seed0" / "model", 1, model, {})
    return directory


def run() -> Reader:
    def make(folder: Path) -> list[str]:
        directory = trained(folder)
        names = [str(p.relative_to(folder)) for p in sorted(directory.rglob("*")) if p.is_file()]
        return [name for name in names if not name.endswith("environment.json")]

    def read(folder: Path) -> object:
        model = mrl_jax.load(folder / "made" / "first")
        arrays = model.reader(["orbit hockey", "", "x\0y"])
        assert arrays["ids"].max(initial=0) < model.program.vocabulary
        assert np.isfinite(arrays["weights"]).all()
        return arrays

    return Reader(make, read)


def words() -> Reader:
    """The tokenizer of a bag of words alone: as in `run`, but fast."""

    config = BagConfig(min_documents=1)

    def make(folder: Path) -> list[str]:
        encoders.fit(config, "made", "text", [row["text"] for row in rows(8)]).save(folder)
        return ["tokenizer.json", "idf.json"]

    def read(folder: Path) -> object:
        reader = encoders.load(config, folder, "text")
        arrays = reader(["orbit hockey", "", "x\0y"])
        assert arrays["ids"].max(initial=0) < reader.vocabulary
        assert np.isfinite(arrays["weights"]).all()
        return arrays

    return Reader(make, read)


def arrays() -> Reader:
    """A checkpoint alone."""

    like = {"a": np.zeros((2, 3), np.float32), "b": [np.zeros(4, np.int32)]}

    def make(folder: Path) -> list[str]:
        checkpoint.save(folder / "model", 1, like, {"best": 1})
        return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]

    return Reader(make, lambda folder: checkpoint.load(folder / "model", 1, like))


def settings() -> Reader:
    """A stored configuration."""

    def make(folder: Path) -> list[str]:
        (folder / "config.yaml").write_text(configuration.to_yaml(made_config(Path("results"))))
        return ["config.yaml"]

    return Reader(make, lambda folder: configuration.from_yaml(folder / "config.yaml"))


COMMANDS = (
    "data=files data.train=a.jsonl data.test=b.jsonl name=mine",
    "+experiment=reuters_r52 arms=all seeds=5 trainer.steps=20",
    "data=pairs loss.name=info_nce width=64 nesting_dims=[16,64] encoder=transformer encoder.hidden=64 encoder.heads=4",
    "data=features encoder=mlp encoder.hidden=[64,32] optimizer=sgd optimizer.learning_rate=1e-3 nesting_dims=uniform",
    "data=wordnet loss.weights=[1,2,1,1,1,1] evaluation.dims=[3,5] evaluation.refit=null run=first resume=true",
)


def overrides() -> Reader:
    def make(folder: Path) -> list[str]:
        for i, command in enumerate(COMMANDS):
            (folder / f"{i}.txt").write_text(command)
        return [f"{i}.txt" for i in range(len(COMMANDS))]

    def read(folder: Path) -> object:
        changed = [text for i in range(len(COMMANDS)) if (text := command(folder / f"{i}.txt")) != COMMANDS[i]]
        return [configuration.from_command_line(text.split(" ")) for text in changed[:1]]

    def command(path: Path) -> str:
        return path.read_bytes().replace(b"\0", b"").decode(errors="surrogateescape")  # as a process gets its words

    return Reader(make, read)
