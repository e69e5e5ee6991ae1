"""What `python -m mrl_jax.train --help` says: the commands that users type first, and every key in a line."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from mrl_jax.config.command_line import CONF
from mrl_jax.config.schema import Config, LossConfig, OptimizerConfig, TrainerConfig, TuneConfig
from mrl_jax.data import SOURCES, DataConfig, SourceConfig
from mrl_jax.encoders import ENCODERS
from mrl_jax.evaluate import EvaluationConfig
from mrl_jax.system.errors import nearest
from mrl_jax.system.processes import DistributedConfig

COMMANDS = """\
Train, evaluate and draw one experiment. Every word is key=value; lists stand in brackets without spaces.

  python -m mrl_jax.train +experiment=newsgroups                       an experiment of conf/experiment/
  python -m mrl_jax.train +experiment=reuters_r52 arms=all seeds=5     a study: all arms, five seeds
  python -m mrl_jax.train data=files data.train=a.jsonl data.test=b.jsonl name=mine    your texts and labels
  python -m mrl_jax.train +experiment=newsgroups resume=true           continue the latest run
  python -m mrl_jax.train --multirun +experiment=reuters_r8 optimizer.learning_rate=3e-3,1e-2    a sweep
  python -m mrl_jax.train +experiment=newsgroups --cfg job             the configuration, without running it
"""
SECTIONS = {
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
    "tune": TuneConfig,
    "evaluation": EvaluationConfig,
    "distributed": DistributedConfig,
    "data": DataConfig,
    "data.sources.NAME": SourceConfig,
}


def comments(cls: type) -> Iterator[tuple[str, str]]:
    """(field, the comment beside it) of a dataclass, in order."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for field in definition.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            own = lines[field.lineno - 1 : field.end_lineno]
            yield field.target.id, " ".join(part for line in own for part in line.split("  # ")[1:])


def page() -> str:
    """The whole help page."""
    parts = [COMMANDS, f"experiments: {', '.join(sorted(path.stem for path in (CONF / 'experiment').glob('*.yaml')))}"]
    parts += [f"data: {', '.join(SOURCES)}", f"encoder: {', '.join(ENCODERS)}", ""]
    top = [(key, text) for key, text in comments(Config) if key not in (*SECTIONS, "encoder", "open_keys")]
    parts += _table(top, "")
    for section, cls in SECTIONS.items():
        parts += ["", *_table(comments(cls), f"{section}.")]
    for name, entry in ENCODERS.items():
        keys = ((key, text) for key, text in comments(entry.config) if key != "name")
        parts += ["", f"with encoder={name}:", *_table(keys, "encoder.")]
    return "\n".join(parts)


def _table(rows: Iterator[tuple[str, str]] | list[tuple[str, str]], prefix: str) -> list[str]:
    return [f"  {prefix + key:<32} {text}".rstrip() for key, text in rows]


def unknown_flag(flag: str) -> str:
    """The sentence for a flag that there is not, such as --epochs=3."""
    name, _, value = flag.lstrip("-").partition("=")
    name = name.replace("-", "_")
    keys = [key for key, _ in comments(Config) if key not in (*SECTIONS, "encoder", "open_keys")]
    keys += [f"{section}.{key}" for section, cls in SECTIONS.items() for key, _ in comments(cls)]
    keys += [f"encoder.{key}" for entry in ENCODERS.values() for key, _ in comments(entry.config)]
    short = {key.rpartition(".")[2]: key for key in reversed(keys)}
    key = name if name in keys else short.get(name)
    if key is not None:
        return f"there is no flag {flag}; write {key}={value or '…'}"
    return f"there is no flag {flag}{nearest(name, ['help', 'multirun', 'cfg', *short])}; settings are words key=value"
