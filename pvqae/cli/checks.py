"""One thing that was looked at, and how a person or a program reads all of them.

The packages of each extra of pyproject.toml: whether they are there, of a version that works, of the tried one.
"""

import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pvqae.cli.console import to_json

State = Literal["ok", "warn", "bad"]
_COLOURS = {"ok": "green", "warn": "yellow", "bad": "bold red"}


@dataclass(frozen=True)
class Check:
    """`bad`: something fails because of it; `warn`: something is missing that not everybody needs.

    `repair` is a command, or a sentence where no command does it; empty if there is nothing to repair.
    """

    name: str
    state: State
    found: str
    repair: str = ""


def _exit_code(checks: Sequence[Check]) -> int:
    """Return 1 if anything is bad, else 0."""
    return int(any(check.state == "bad" for check in checks))


def _table(checks: Sequence[Check]) -> Table:
    """Return a table with each repair on a line of its own, so that a narrow terminal does not cut it."""
    shown = Table("check", "state", "found, and the repair", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for check in checks:
        said = Text(check.found)
        if check.repair:
            said.append(f"\n→ {check.repair}", style="bold")
        shown.add_row(Text(check.name), Text(check.state, style=_COLOURS[check.state]), said)
    return shown


def _sentence(checks: Sequence[Check]) -> str:
    """Return the counts in words."""
    bad, warn = (sum(check.state == state for check in checks) for state in ("bad", "warn"))
    if not bad and not warn:
        return f"{len(checks)} checks, nothing to repair"
    return f"{len(checks)} checks: {bad} bad, {warn} to look at"


def show(checks: Sequence[Check], as_json: bool, screen: Console) -> int:
    """Print a table and a sentence, or JSON; return the exit code of the command."""
    if as_json:
        print(to_json(checks))
    else:
        screen.print(_table(checks))
        screen.print(_sentence(checks), highlight=False)
    return _exit_code(checks)


_Installed = Callable[[str], str | None]  # a package's version, None where it is not installed
CORE = "core"
# What a person lacks without the extra; `dev` and `services` are looked at only where they are needed.
_EXTRAS = {
    CORE: "everything",
    "validation": "`pvqae data check`",
    "serve": "`pvqae serve`",
    "stream": "`pvqae stream` of cameras and videos",
    "backbones": "backbones of other libraries (timm:, hf:)",
    "export": "`pvqae export`",
    "flows": "`python -m flows`",
}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required(pyproject: Path) -> dict[str, list[Requirement]]:
    """Return what each extra requires, by the sources' pyproject.toml, else by the installed package.

    An editable installation keeps the metadata of the day it was made, so the file comes first.
    """
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
        texts = {CORE: project["dependencies"], **project["optional-dependencies"]}
        return {extra: [Requirement(text) for text in own] for extra, own in texts.items()}
    found = [Requirement(text) for text in metadata.requires("pvqae") or ()]
    return {extra: [item for item in found if _belongs(item, extra)] for extra in _EXTRAS}


def _belongs(item: Requirement, extra: str) -> bool:
    if item.marker is None:
        return extra == CORE
    return extra != CORE and item.marker.evaluate({"extra": extra})


def pinned(constraints: Path) -> dict[str, str]:
    """Return each package's version in constraints.txt; empty if there is no such file."""
    if not constraints.is_file():
        return {}
    lines = re.findall(r"^([\w.-]+)==([^\s;]+)", constraints.read_text("utf-8"), re.MULTILINE)
    return {_normal(name): version for name, version in lines}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def checks(
    wanted: Mapping[str, Sequence[Requirement]], pins: Mapping[str, str], needed: str, found: _Installed = _installed
) -> list[Check]:
    """Return one check per extra.

    It is bad if `needed` (an extra) or the core lacks a package, or a version is known not to work.
    """
    return [_check(extra, wanted.get(extra, ()), pins, extra in (CORE, needed), found) for extra in _EXTRAS]


def _check(
    extra: str, wanted: Sequence[Requirement], pins: Mapping[str, str], needed: bool, found: _Installed
) -> Check:
    versions = {item.name: found(item.name) for item in wanted}
    missing = [name for name, version in versions.items() if version is None]
    wrong = [f"{item.name} {versions[item.name]}, expected {item.specifier}" for item in wanted if _wrong(item, found)]
    repair = install(extra, bool(pins))
    if missing:
        said = f"not installed: {', '.join(missing)}, needed for {_EXTRAS[extra]}"
        return Check(f"extra {extra}", "bad" if needed else "warn", said, repair)
    if wrong:
        return Check(f"extra {extra}", "bad", "; ".join(wrong), repair)
    others = [
        f"{name} {version}, tried with {pins[_normal(name)]}"
        for name, version in versions.items()
        if version and _normal(name) in pins and Version(version).public != Version(pins[_normal(name)]).public
    ]
    if others:
        return Check(f"extra {extra}", "warn", "; ".join(others), repair)
    said = "as in constraints.txt" if pins else "no constraints.txt here to compare with"
    return Check(f"extra {extra}", "ok", f"{len(versions)} packages, {said}")


def _wrong(item: Requirement, found: _Installed) -> bool:
    version = found(item.name)
    return version is not None and not item.specifier.contains(version, prereleases=True)


def install(extra: str, from_sources: bool) -> str:
    """Return the command that installs an extra with the versions that work together."""
    name = "" if extra == CORE else f"[{extra}]"
    if from_sources:
        return f"{shlex.quote(sys.executable)} -m pip install -c constraints.txt -e '.{name}'"
    return f"{shlex.quote(sys.executable)} -m pip install 'pvqae{name}'"
