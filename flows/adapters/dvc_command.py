"""DVC's command, with libyaml for dvc.lock: `python -P dvc_command.py ARGUMENTS`.

After every stage DVC reads and writes the whole lock file, keeping comments that it does not have. With a hundred
classes that took 3.4 s of each of four hundred stages, and a kill in the middle of it left half a file. Here it is
parsed and written by libyaml in a tenth of the time, and appears whole. The text means the same to DVC itself: scalars
are read by the rules of YAML 1.2, as DVC reads them, and quoted where either version takes them for something else.

Run as a file, so that code of another version can be in the workspace; -P keeps this folder's names off the path.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

LOCK = "dvc.lock"
RULES = {  # YAML 1.2, core schema: tag, what matches, first characters
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?0b[01_]+|[-+]?0o?[0-7_]+|[-+]?[0-9_]+|[-+]?0x[0-9a-fA-F_]+", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9_]+|[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


class Loader(yaml.CSafeLoader):
    """Plain values by the rules of YAML 1.2 alone: `off` and `1:30` are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as its base has it


class Dumper(yaml.CSafeDumper):
    """Quotes what either version of YAML would not read as a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _whole(loader: Loader, node: yaml.ScalarNode) -> int:
    """Of YAML 1.2: a leading zero is no octal number."""
    return int(re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", str(node.value).replace("_", "")), 0)


for _tag, (_pattern, _first) in RULES.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", _whole)
# DVC's own kinds of these
for _kind, _name in ((dict, "dict"), (list, "list"), (str, "str")):
    Dumper.add_multi_representer(_kind, getattr(yaml.representer.SafeRepresenter, f"represent_{_name}"))


def parse(text: str) -> dict[str, Any]:
    return yaml.load(text, Loader) or {}  # a SafeLoader


def text_of(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


@contextmanager
def modified(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
    """What `modify_yaml` of DVC does, for the lock file."""
    file = Path(path)
    content = parse(file.read_text("utf-8")) if file.exists() else {}
    yield content
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    beside.write_text(text_of(content), "utf-8")
    beside.replace(file)


def main() -> int:
    from dvc import dvcfile
    from dvc.cli import main as dvc
    from dvc.utils import strictyaml

    theirs, reads = dvcfile.modify_yaml, strictyaml.parse_yaml

    def modify(path: str, fs: Any = None) -> Any:
        return (modified if Path(path).name == LOCK else theirs)(path, fs)

    def read(text: str, path: str, typ: str = "safe") -> Any:
        if Path(path).name == LOCK and typ == "safe":
            try:
                return parse(text)
            except yaml.YAMLError:
                pass  # DVC says it in its own words
        return reads(text, path, typ)

    dvcfile.modify_yaml, strictyaml.parse_yaml = modify, read
    return int(dvc(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
