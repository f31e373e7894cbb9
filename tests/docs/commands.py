"""The commands, links and code of the markdown pages, and the command lines that they must fit."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from flows.cli import main as flows_cli
from pvqae.cli import main as pvqae_cli

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), ROOT / "data" / "README.md", ROOT / "infra" / "README.md", *(ROOT / "docs").rglob("*.md")]
)
PROGRAMS = {"pvqae": pvqae_cli.app, "python -m flows": flows_cli.app}
# What the Makefile puts before ARGS.
MADE = {
    "run": "python -m flows train",
    "services": "python -m flows services",
    "accuracy": "python -m flows bench accuracy",
}
# Where a command ends: a comment, another command, a pipe.
ENDS = re.compile(r"\s#|\s\||&&|;|\)|,\s|\s→|\.\s|\s\(")


def text_of(page: Path) -> str:
    """The page with lines that end in a backslash joined."""
    return page.read_text("utf-8").replace("\\\n", " ")


def blocks(text: str) -> Iterator[str]:
    """Lines of code blocks (indented by four, or fenced) and pieces of `code` in the text."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line.replace("\\|", "|"))


def commands(page: Path) -> list[str]:
    """Every `pvqae ...`, `python -m flows ...` and `make ...` of a page, without comments and what follows."""
    found = []
    for line in blocks(text_of(page)):
        bare = line.removeprefix("$ ").strip()
        bare = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", bare)  # a setting of the environment before the command
        bare = re.sub(r"^\S*bin/(?=python|pvqae)", "", bare)
        if bare.startswith(("pvqae ", "python -m flows ", "make ")):
            found.append(bare[: _end(bare)].strip())
    return found


def _end(line: str) -> int:
    """Where the command of a line ends; what is in quotes ends none."""
    masked = re.sub(r"\"[^\"]*\"|'[^']*'", lambda quoted: "_" * len(quoted[0]), line)
    found = ENDS.search(masked)
    return found.start() if found else len(line)


def command_tree(program: str) -> Any:
    return typer.main.get_command(PROGRAMS[program])


def problem(command: str) -> str:
    """What of a documented command the command line does not know; "" if it knows all."""
    if command.startswith("make "):
        return _make_problem(shlex.split(command)[1:])
    program = next(name for name in PROGRAMS if command.startswith(f"{name} "))
    words = shlex.split(command.removeprefix(program))
    here = command_tree(program)
    while hasattr(here, "commands") and words:
        verb = words.pop(0)
        if verb.startswith(("<", "-")) or verb in ("...", "VERB"):
            return ""
        names = verb.split("|")  # `promote run|log`: each must exist
        if unknown := [name for name in names if name not in here.commands]:
            return f"no command {unknown[0]!r}; there are {', '.join(here.commands)}"
        here = here.commands[names[0]]
    known = {name for param in here.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    options = [re.split(r"[=\]]", word.lstrip("["))[0] for word in words if word.lstrip("[").startswith("-")]
    unknown = [option for option in options if option not in known and len(option) > 1]
    return f"no option {unknown[0]!r}; there are {', '.join(sorted(known))}" if unknown else ""


def _make_problem(words: list[str]) -> str:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name == "ARGS" and words[0] in MADE:
            return problem(f"{MADE[words[0]]} {value}")
        if not equals and name not in targets:
            return f"no target {name!r}; there are {', '.join(targets)}"
    return ""
