"""Pages show names of files that others chose: every template escapes, no script makes HTML of text."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
CODE = [*PROJECT.glob("pvqae/**/*.py"), *PROJECT.glob("flows/**/*.py")]
TEMPLATES = [*PROJECT.glob("pvqae/**/*.j2"), *PROJECT.glob("flows/**/*.j2")]
SCRIPTS = [*PROJECT.glob("pvqae/**/*.js"), *PROJECT.glob("flows/**/*.js")]


def test_every_environment_escapes() -> None:
    made = [call for path in CODE for call in re.findall(r"\bEnvironment\((?:[^()]|\([^()]*\))*\)", path.read_text())]
    assert made
    assert all("autoescape=True" in call for call in made)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_turns_escaping_off(path: Path) -> None:
    assert not re.search(r"\|\s*safe\b|autoescape\s+false", path.read_text("utf-8"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_html_of_text(path: Path) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text("utf-8"))
