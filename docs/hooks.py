"""mkdocs hook: the site also shows the pages of experiments/ and benchmarks/, which live outside docs/.

Pages link to files as the repository has them, so that the links work where the Markdown is read as it is. Here a link
to a page or an image of the site is turned into one within the site, and a link to any other file into its path.

`<!-- keys of mrl_jax/config.py TrainerConfig as trainer -->` becomes the table of that dataclass's fields: key, default
and the comment beside it.
"""

import ast
import json
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("experiments/*/README.md")), ROOT / "benchmarks" / "README.md"]
KEYS = re.compile(r"<!-- keys of (?P<path>\S+) (?P<name>\w+) as (?P<prefix>\w+) -->")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the images that any page shows."""
    sources = [*DOCS.glob("*.md"), *PAGES]
    images = {
        (source.parent / link["path"]).resolve()
        for source in sources
        for link in LINK.finditer(source.read_text(encoding="utf-8"))
        if link["image"]
    }
    for path in (*PAGES, *sorted(images)):
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository as links of the site."""
    folder = Path(page.file.abs_src_path).resolve().parent
    here = os.path.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target = (folder / match["path"]).resolve()
        if not target.exists():  # not a link but code, or one that --strict reports
            return match[0]
        place = target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT).as_posix()
        if files.get_file_from_path(place) is None:
            return f"`{place}`" if match["text"] in place else f"{match['text']} (`{place}`)"
        return f"{match['image']}[{match['text']}]({os.path.relpath(place, here or '.')}{match['anchor'] or ''})"

    return KEYS.sub(
        lambda match: key_table(ROOT / match["path"], match["name"], match["prefix"]), LINK.sub(link, markdown)
    )


def key_table(path: Path, name: str, prefix: str) -> str:
    """The fields of a dataclass, each with its default and the comment on its lines, as a Markdown table."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    fields = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name).body
    rows = ["| key | default | what it sets |", "|---|---|---|"]
    for field in fields:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            comments = [part for line in lines[field.lineno - 1 : field.end_lineno] for part in line.split("  # ")[1:]]
            text = " ".join(comments).replace("|", "\\|")
            rows.append(f"| `{prefix}.{field.target.id}` | {default(field.value)} | {text} |")
    return "\n".join(rows)


def default(value: ast.expr | None) -> str:
    """A default as the command line has it; of `limited(0.05, …)` and the like, their first argument."""
    if isinstance(value, ast.Call):
        value = value.args[0] if value.args else None
    if value is None:
        return ""
    if isinstance(value, ast.Constant):
        return f"`{json.dumps(value.value).strip(chr(34))}`"
    return f"`{ast.unparse(value)}`"
