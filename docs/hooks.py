"""mkdocs hook: the site also shows the pages of experiments/ and benchmarks/, which live outside docs/.

Pages link to files as the repository has them, so that the links work where the Markdown is read as it is. Here a link
to a page or an image of the site is turned into one within the site, and a link to any other file into its path.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("experiments/*/README.md")), ROOT / "benchmarks" / "README.md"]
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
            return f"`{place}`" if match["text"] in (place, target.name) else f"{match['text']} (`{place}`)"
        return f"{match['image']}[{match['text']}]({os.path.relpath(place, here or '.')}{match['anchor'] or ''})"

    return LINK.sub(link, markdown)
