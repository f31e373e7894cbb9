"""Every command of the pages fits the command lines and the Makefile; every link, picture and named module is there."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.docs.commands import PAGES, PROGRAMS, ROOT, commands, problem, text_of

LINK = re.compile(r"\]\((?!\w+://)([^)#\s]*)(?:#([\w-]+))?\)")
# Names of a branch and of events look like modules.
NO_MODULES = {"pvqae/data", "pvqae.promoted", "pvqae.samples.arrived", "pvqae.drift.detected"}
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# The changelog names commands and modules of earlier versions, too.
CURRENT = [name for name in NAMES if name != "CHANGELOG.md"]


@pytest.mark.parametrize("name", CURRENT)
def test_every_command_fits_the_command_line(name: str) -> None:
    wrong = [f"{command}: {why}" for command in commands(ROOT / name) if (why := problem(command))]
    assert not wrong, "\n".join(wrong)


def test_the_pages_are_full_of_commands() -> None:
    counts = {name: len(commands(page)) for name, page in zip(NAMES, PAGES, strict=True)}
    assert counts["README.md"] >= 6
    assert counts["docs/operations.md"] >= 20
    assert sum(count for name, count in counts.items() if name.startswith("docs/operations")) >= 70
    assert counts["docs/tutorial.md"] >= 25


def test_the_readme_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 80
    assert len(text.split()) <= 650


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python -m flows train --sets x=1", "no option '--sets'"),
        ("python -m flows promote runn a b", "no command 'runn'"),
        ("python -m flows promote run|logs", "no command 'logs'"),
        ("pvqae scores x", "no command 'scores'"),
        ("python -m flows bench accuracy --quik", "no option '--quik'"),
        ('make services ARGS="stat"', "no command 'stat'"),
        ("make runn", "no target 'runn'"),
    ],
)
def test_what_is_misspelt_is_noticed(command: str, said: str) -> None:
    assert said in problem(command)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_pictures_are_there(page: Path) -> None:
    dead = []
    for file, anchor in LINK.findall(text_of(page)):
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(f"{file}#{anchor}")
    assert not dead


def anchors(page: Path) -> set[str]:
    """Names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", CURRENT)
def test_every_named_module_is_there(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    files = set(re.findall(r"`((?:pvqae|flows|tests|infra)/[\w./-]+)`", text))
    modules = set(re.findall(r"`((?:pvqae|flows|tests)(?:\.\w+)+)(?:\([^`]*\))?`", text))
    missing = [file for file in files if not (ROOT / file).exists()]
    assert not {*missing, *(module for module in modules if not importable(module))} - NO_MODULES


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    *parts, last = name.split(".")
    folder = ROOT.joinpath(*parts)
    if (folder / f"{last}.py").exists() or (folder / last).is_dir():
        return True
    module = folder.with_suffix(".py").exists() or (folder / "__init__.py").exists()
    return module and hasattr(import_module(".".join(parts)), last)


def every_command(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = [item for program, app in PROGRAMS.items() for item in every_command(typer.main.get_command(app), program)]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_the_help_of_every_command_is_whole(path: str, command: Any) -> None:
    assert command.help
    assert [param.name for param in command.params if param.name != "help" and not getattr(param, "help", "")] == []
    assert (command.epilog or "").startswith(f"Example: {path}"), command.epilog
    assert problem(shlex.join(shlex.split(command.epilog.removeprefix("Example: ")))) == ""
