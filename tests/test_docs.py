"""What README.md and the pages of docs/, experiments/ and benchmarks/ say can be imported, run and found."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mrl_jax import config

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("experiments/*/README.md")),
    ROOT / "benchmarks" / "README.md",
]
NAMED_FILE = re.compile(
    r"(?<![\w/.-])(?:mrl_jax|tests|benchmarks|experiments|docs|conf)/[\w/.-]+\.(?:py|md|sh|sbatch|yaml)\b"
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


SNIPPETS = [(named(page), code) for page in PAGES for code in blocks(page, "python")]
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for block in blocks(page, "bash")
        for line in re.split(r"\n|&&", block.replace("\\\n", " "))
        if "python -m mrl_jax.train " in line and not re.search("…|--multirun|--cfg", line.split("#")[0])
    }
)


OPTIONAL = {"mteb"}  # packages of extras that the tests do without


@pytest.mark.parametrize(("page", "code"), SNIPPETS)
def test_every_name_that_a_snippet_imports_exists(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name not in OPTIONAL:
                    importlib.import_module(alias.name)
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):  # a module below it, or nothing
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("needed", ["nested_cross_entropy", "nested_info_nce", "lay_out"])
def test_snippets_that_only_need_arrays_run_as_they_are(needed: str) -> None:
    chosen = [code for _, code in SNIPPETS if needed in code and "…" not in code]
    assert chosen
    for code in chosen:
        vectors = np.random.default_rng(0).normal(size=(200, 256)).astype(np.float32)
        names = {"z": vectors, "vectors": vectors, "queries": vectors[:7], "documents": vectors[:7]}
        exec(code, names | {"kernel": np.ones((256, 3), np.float32), "labels": np.zeros(200, np.int32)})


def test_readme_has_the_two_commands_of_one_line() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -q -c requirements.lock -e "
    train, test = (line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if install in line)
    assert train == install + ". && .venv/bin/python -m mrl_jax.train +experiment=newsgroups"
    assert test == install + "'.[dev]' && .venv/bin/python -m pytest -n 2 --dist loadfile"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_training_command_has_keys_and_values_that_are_allowed(command: str) -> None:
    words = shlex.split(command)
    config.from_command_line(words[words.index("mrl_jax.train") + 1 :])


def test_every_file_that_a_page_names_exists() -> None:
    written = {path for _, code in SNIPPETS for path in re.findall(r"\A# (\S+\.py)$", code, re.MULTILINE)}
    missing = {
        f"{named(page)}: {path}"
        for page in PAGES
        for path in NAMED_FILE.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists() and path not in written
    }
    assert not missing


@pytest.mark.parametrize("diff", blocks(ROOT / "docs" / "extending.md", "diff"))
def test_diffs_of_extending_change_lines_that_are_there(diff: str) -> None:
    first, *lines = diff.splitlines()
    source = (ROOT / re.split(r"[ ,]", first.strip("# "))[0]).read_text(encoding="utf-8").splitlines()
    context = [line[1:] for line in lines if line.startswith(" ") and line.strip() not in ("", "…")]
    assert context
    assert set(context) <= set(source)
