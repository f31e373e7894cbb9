"""What each stage of dvc.yaml depends on, as the import graph says it: `python -m tests.stages` rewrites dvc.yaml."""

import re
from functools import cache
from pathlib import Path

import grimp
import yaml

ROOT = Path(__file__).parents[1]
# The module of each verb. The command line that calls it (`pvqae.cli`) parses words and computes nothing.
VERBS = {
    "demo": "pvqae.datasets.demo",
    "manifest": "pvqae.datasets.build",
    "validate": "pvqae.datasets.validation",
    "train": "pvqae.training.network",
    "prior": "pvqae.prior.learn",
    "calibrate": "pvqae.calibration.calibrate",
    "evaluate": "pvqae.evaluation.stage",
    "report": "pvqae.report.report",
}
TABLES = {"pvqae.datasets.mtsd": ["pvqae/datasets/mtsd_groups.txt"]}  # what modules read of the package


@cache
def graph(root: Path = ROOT) -> grimp.ImportGraph:
    """Return who imports whom in the library, imports inside functions included, those for types alone not."""
    return grimp.build_graph("pvqae", cache_dir=None, exclude_type_checking_imports=True)


def files(root: Path, module: str) -> set[str]:
    """Return the file of a module and its tables; none for a package, whose `__init__.py` holds no code."""
    file = Path(*module.split(".")).with_suffix(".py")
    return {file.as_posix(), *TABLES.get(module, ())} if (root / file).exists() else set()


def imported(verb: str, root: Path = ROOT) -> set[str]:
    """Return every file of the library that a stage's verb imports, directly or through others."""
    modules = {VERBS[verb], *graph().find_upstream_modules(VERBS[verb])}
    return set().union(*(files(root, module) for module in modules))


def below(root: Path, folder: str) -> set[str]:
    """Return every module and table below a folder."""
    every = (file.relative_to(root).as_posix() for end in ("py", "txt") for file in (root / folder).rglob(f"*.{end}"))
    return {file for file in every if not file.endswith("__init__.py")}


def named(verb: str, root: Path = ROOT) -> set[str]:
    """Return every file of the library below what the stage names in dvc.yaml."""
    stage = yaml.safe_load((root / "dvc.yaml").read_text("utf-8"))["stages"][verb]
    found: set[str] = set()
    for place in stage.get("do", stage)["deps"]:
        if place.startswith("pvqae/"):
            found |= below(root, place) if (root / place).is_dir() else {place}
    return found


def command(verb: str, root: Path = ROOT) -> str:
    """Return the last word of the command line that the stage runs, without its argument: `build` of `data build`."""
    stage = yaml.safe_load((root / "dvc.yaml").read_text("utf-8"))["stages"][verb]
    words = [word for word in stage.get("do", stage)["cmd"].split()[1:] if "$" not in word and "/" not in word]
    return str(words[-1])


def shortest(verb: str, root: Path = ROOT) -> list[str]:
    """Return the folders and files to name: a folder where all of it is imported."""
    left, found = imported(verb, root), []
    for room in sorted({file.split("/")[1] for file in left}):
        own = below(root, f"pvqae/{room}")
        found += [f"pvqae/{room}"] if own <= left else sorted(own & left)
    return found


def write(root: Path = ROOT) -> None:
    """Put the dependencies on code into dvc.yaml, after those on data."""
    text = (root / "dvc.yaml").read_text("utf-8")
    for verb in VERBS:
        begin = re.search(rf"^  {verb}:\n", text, re.M)
        assert begin, f"dvc.yaml: expected a stage {verb}, found none"
        after = re.compile(r"^  \S", re.M).search(text, begin.end())
        end = after.start() if after else len(text)
        stage = re.sub(r"^ +- pvqae/.*\n", "", text[begin.start() : end], flags=re.M)
        place = re.search(r"^( +)deps:\n(?:\1  - .*\n)*", stage, re.M)
        assert place, f"dvc.yaml: stage {verb} names no dependencies"
        lines = "".join(f"{place.group(1)}  - {name}\n" for name in shortest(verb, root))
        text = text[: begin.start()] + stage[: place.end()] + lines + stage[place.end() :] + text[end:]
    (root / "dvc.yaml").write_text(text, "utf-8")


if __name__ == "__main__":
    write()
