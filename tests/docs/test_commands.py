"""Every command of the pages fits the command lines and the Makefile; every link and picture is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.docs.commands import DOORS, PAGES, ROOT, commands, problem, text_of

LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_fits_the_command_line(page: Path) -> None:
    wrong = [f"{command}: {why}" for command in commands(page) if (why := problem(command))]
    assert not wrong, "\n".join(wrong)


def test_the_pages_are_full_of_commands() -> None:
    counts = {name: len(commands(page)) for name, page in zip(NAMES, PAGES, strict=True)}
    assert counts["README.md"] >= 15
    assert counts["docs/operations.md"] >= 30
    assert counts["docs/tutorial.md"] >= 10


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
    links = [link for link in LINK.findall(text_of(page)) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def every_command(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = [item for door, app in DOORS.items() for item in every_command(typer.main.get_command(app), door)]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_the_help_of_every_command_is_whole(path: str, command: Any) -> None:
    assert command.help
    assert [param.name for param in command.params if param.name != "help" and not getattr(param, "help", "")] == []
    assert (command.epilog or "").startswith(f"Example: {path}"), command.epilog
    assert problem(shlex.join(shlex.split(command.epilog.removeprefix("Example: ")))) == ""
