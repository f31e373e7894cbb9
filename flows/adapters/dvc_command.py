"""DVC's command, faster with many classes: `python -P dvc_command.py ARGUMENTS`.

After every stage DVC reads and writes the whole lock file, keeping comments that it does not have. With a hundred
classes that took 3.4 s of each of four hundred stages, and a kill in the middle of it left half a file. Here it is
parsed and written by libyaml in a tenth of the time, and appears whole. The text means the same to DVC itself: scalars
are read by the rules of YAML 1.2, as DVC reads them, and quoted where either version takes them for something else.

Stages that run side by side wait for each other's DVC, which looks at its lock every half second; here fifty times a
second.

Run as a file, importing nothing of the project, as code of another version can be in the workspace; -P keeps this
folder's names off the path.
"""

import gc
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_LOCK = "dvc.lock"
_POLL, _PATIENCE = 0.02, 10.0  # seconds
_RULES = {  # YAML 1.2, core schema: tag, what matches, first characters
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?0b[01_]+|[-+]?0o?[0-7_]+|[-+]?[0-9_]+|[-+]?0x[0-9a-fA-F_]+", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+|[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


class _Loader(yaml.CSafeLoader):
    """Plain values by the rules of YAML 1.2 alone: `off` and `1:30` are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as its base has it


class _Dumper(yaml.CSafeDumper):
    """Quotes what either version of YAML would not read as a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Read a whole number of YAML 1.2: a leading zero is no octal number."""
    return int(re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", str(node.value).replace("_", "")), 0)


for _tag, (_pattern, _first) in _RULES.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
# DVC's own kinds of these
for _kind, _name in ((dict, "dict"), (list, "list"), (str, "str")):
    _Dumper.add_multi_representer(_kind, getattr(yaml.representer.SafeRepresenter, f"represent_{_name}"))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause garbage collection, which walks over all that is parsed, again and again, and frees nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def parse(text: str) -> dict[str, Any]:
    """Return the mapping that a lock file is. Raises `YAMLError` for anything else."""
    with _uncollected():
        content = yaml.load(text, _Loader) or {}  # a SafeLoader
    if not isinstance(content, dict):
        raise yaml.YAMLError("no mapping")
    return content


def text_of(content: dict[str, Any]) -> str:
    """Return the text of a lock file."""
    with _uncollected():
        return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


_last: tuple[str, dict[str, Any]] = "", {}


def _parse_again(text: str) -> dict[str, Any]:
    """`parse` for DVC, which reads its lock file twice: keep the last text's content.

    Stages may be replaced in what is returned, not changed.
    """
    global _last
    if _last[0] != text:
        _last = text, parse(text)
    content = _last[1]
    return {**content, "stages": dict(content["stages"])} if "stages" in content else dict(content)


@contextmanager
def _modified(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
    """Do what `modify_yaml` of DVC does, for the lock file."""
    file = Path(path)
    content = _parse_again(file.read_text("utf-8")) if file.exists() else {}
    yield content
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_text(text_of(content), "utf-8")
    part.replace(file)


def _lock(self: Any) -> None:
    """Take the repository's lock, which is another command's now and then."""
    from dvc.lock import LockError

    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            self._do_lock()
            return
        except LockError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL)


def _main() -> int:
    from dvc import dvcfile
    from dvc.cli import main as dvc
    from dvc.lock import Lock
    from dvc.utils import strictyaml

    Lock.lock = _lock
    theirs, reads = dvcfile.modify_yaml, strictyaml.parse_yaml

    def modify(path: str, fs: Any = None) -> Any:
        return (_modified if Path(path).name == _LOCK else theirs)(path, fs)

    def read(text: str, path: str, typ: str = "safe") -> Any:
        if Path(path).name == _LOCK and typ == "safe":
            try:
                return _parse_again(text)
            except yaml.YAMLError:
                pass  # DVC says it in its own words
        return reads(text, path, typ)

    dvcfile.modify_yaml, strictyaml.parse_yaml = modify, read
    return int(dvc(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(_main())
