"""YAML that PyYAML, which reads version 1.1 of it, and DVC, which reads 1.2, take for the same values."""

import gc
import re
from collections.abc import Iterator
from typing import Any

import yaml

Place = tuple[str | int, ...]  # of a value below sections and lists
_MOST_ALIASES = 20  # of a file
_ODD = (RecursionError, LookupError, AttributeError, TypeError)  # what readers of YAML raise for tags like `!!bool z`


class _Loader(yaml.SafeLoader):
    """Plain values only, and few aliases: of aliases of aliases a few lines make more values than memory holds."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > _MOST_ALIASES:
                raise yaml.composer.ComposerError(None, None, f"more than {_MOST_ALIASES} aliases", None)
        return super().compose_node(parent, index)


class _TextLoader(_Loader):
    """Takes every value for the text that it is written as: 08, no and null are names."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as its base has it


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 (PyYAML) or 1.2 (DVC) would not read as a text. PyYAML itself sees to the words; all other
    texts of which 1.2 makes something begin like a number.
    """


_Dumper.add_implicit_resolver("!quoted", re.compile(""), list("-+.0123456789"))


def parse(text: str, as_texts: bool = False) -> Any:
    """Return the content of a YAML text, all of its values as texts if asked for.

    Raises `ValueError` for anything else, and for more than a few aliases.
    """
    collecting = gc.isenabled()
    gc.disable()  # it would walk over all that is parsed again and again, and free nothing
    try:
        return yaml.load(text, _TextLoader if as_texts else _Loader)  # a SafeLoader
    except (yaml.YAMLError, *_ODD) as error:
        raise ValueError(str(error)) from None
    finally:
        if collecting:
            gc.enable()


def dump(content: Any) -> str:
    """Return YAML text that PyYAML and DVC both read as `content`: a class may be called 08, 1e5 or no."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False))


def misread(text: str, ours: Any) -> dict[Place, Any]:
    """Return what DVC reads where it is not what we read. Raises `ValueError` for what DVC does not read at all."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return dict(_differences(ours, YAML(typ="safe", pure=True).load(text)))
    except (YAMLError, *_ODD) as error:
        raise ValueError(str(error).partition("\nTo suppress")[0].rstrip()) from None


def _differences(ours: Any, theirs: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if isinstance(ours, dict) and isinstance(theirs, dict) and list(ours) == list(theirs):
        for key in ours:
            yield from _differences(ours[key], theirs[key], (*place, key))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*pair, (*place, i))
    elif repr(ours) != repr(theirs):
        yield place, theirs
