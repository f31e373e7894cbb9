"""Hooks of mkdocs: pages of other folders, the reference of what `import pvqae` offers, links and anchors as on GitHub.

The pages stay as people read them in the repository: what a site needs besides is made here.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Pages outside of docs/, and where they are on the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "data/README.md": "layouts.md",
    "infra/README.md": "machines.md",
}
REFERENCE = "reference.md"
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^]]*)\]\((?!\w+:)([^)#\s]*)(#[\w-]*)?\)")


def slug(heading: str, separator: str = "-") -> str:
    """Return the name by which GitHub links to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", separator)


def reference() -> str:
    """Return the page of every public name of the package."""
    import pvqae

    names = "\n\n".join(f"::: pvqae.{name}" for name in sorted(pvqae.__all__, key=str.lower))
    begin = "# Python\n\nWhat `import pvqae` offers; everything else is private by convention."
    return f"{begin} The [quickstart](quickstart.ipynb) shows the first five in use.\n\n{names}\n"


def site_link(page: str, target: str) -> str:
    """Return a link of `page` (below the repository) as the site has it; "" where the site has no such file."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else page
    inside = found.removeprefix("docs/") if found.startswith("docs/") else ELSEWHERE.get(found, "")
    here = page.removeprefix("docs/") if page.startswith("docs/") else ELSEWHERE[page]
    return posixpath.relpath(inside, posixpath.dirname(here) or ".") if inside else ""


def on_config(config: Any) -> Any:
    config.mdx_configs["toc"]["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    for name, place in ELSEWHERE.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text("utf-8")))
    files.append(File.generated(config, REFERENCE, content=reference()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make links those of the site; one to a file of the code becomes the file's name."""
    place = page.file.src_uri
    source = next((name for name, other in ELSEWHERE.items() if other == place), f"docs/{place}")

    def changed(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        if place == REFERENCE or not target:
            return found[0]
        there = site_link(source, target)
        return f"[{words}]({there}{anchor})" if there else words

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(changed, part) for part in parts)
