"""The docs site has pages that no file in docs/ holds: README, CONTRIBUTING, CHANGELOG and the reference.

Their links are those of a reader of the repository; here they become those of the site.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PACKAGES = ("repfx", "repfx.export", "passes", "repnext")  # what users call; the other rooms follow
LINK = re.compile(r"(?<=\]\()(?:\.\./|docs/)?([\w./-]+)(?=[#)])")


def rooms() -> list[str]:
    """The rooms as benchmarks.house knows them."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.house import ordered_rooms

    return [room for room in ordered_rooms() if room not in PACKAGES]


def passes() -> list[str]:
    """The files of the passes."""
    return sorted(path.stem for path in (ROOT / "passes").glob("[a-z]*.py"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation, before the last part."""
    assert config.nav is not None
    pages: list[Any] = [{name: f"reference/{name}.md"} for name in PACKAGES]
    pages.append({"Rooms": [{name: f"reference/{name}.md"} for name in rooms()]})
    config.nav.insert(-1, {"Reference": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    for name in (*PACKAGES, *rooms()):
        text = f"# `{name}`\n\n::: {name}\n"
        if name == "passes":  # whose rules are what its files say
            text += "".join(f"\n## {stem}\n\n::: passes.{stem}\n" for stem in passes())
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where the site has their pages."""
    if page.file.src_uri.startswith("reference/"):
        return markdown
    return LINK.sub(lambda found: PAGES.get(found[1], found[1]), markdown)
