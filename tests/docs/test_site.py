"""The site has every page, and its links lead to pages that it has; `make site` builds it."""

import posixpath
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests import site
from tests.docs.commands import ROOT, text_of

SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
LEFT_OUT = tuple(SETTINGS["exclude_docs"].split())


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
        return
    for item in nav.values() if isinstance(nav, dict) else nav:
        yield from leaves(item)


NAV = list(leaves(SETTINGS["nav"]))
PAGES = {
    path.relative_to(ROOT / "docs").as_posix(): path
    for path in (ROOT / "docs").rglob("*.md")
    if not path.relative_to(ROOT / "docs").as_posix().startswith(LEFT_OUT)
}
EVERY = PAGES | {place: ROOT / name for name, place in site.ELSEWHERE.items()}


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(NAV) == sorted({*EVERY, site.REFERENCE})


@pytest.mark.parametrize("place", EVERY)
def test_every_link_of_the_site_leads_somewhere(place: str) -> None:
    source = EVERY[place].relative_to(ROOT).as_posix()
    dead = []
    for _, target, _ in site._LINK.findall(text_of(EVERY[place])):
        there = site.site_link(source, target) if target else ""
        found = posixpath.normpath(posixpath.join(posixpath.dirname(place), there))
        if there and found not in EVERY and not (ROOT / "docs" / found).exists():
            dead.append(target)
    assert not dead


def test_the_reference_has_every_public_name() -> None:
    import pvqae

    assert re.findall(r"^::: pvqae\.(\w+)$", site.reference(), re.MULTILINE) == sorted(pvqae.__all__, key=str.lower)


@pytest.mark.parametrize(
    ("page", "target", "there"),
    [
        ("README.md", "docs/results.md", "results.md"),
        ("docs/operations/upkeep.md", "../../CHANGELOG.md", "../changelog.md"),
        (
            "docs/operations/new-images.md",
            "../decisions/09-arrivals-and-review.md",
            "../decisions/09-arrivals-and-review.md",
        ),
        ("docs/comparison.md", "../params.yaml", ""),
        ("data/README.md", "../docs/operations/datasets.md", "operations/datasets.md"),
    ],
)
def test_links_become_those_of_the_site(page: str, target: str, there: str) -> None:
    assert site.site_link(page, target) == there


def test_nothing_of_the_site_is_loaded_from_elsewhere() -> None:
    assert SETTINGS["theme"]["font"] is False
    assert not re.search(r"https?://", (ROOT / "mkdocs.yml").read_text("utf-8"))
