"""Draw the rooms of both packages from the import graph: `make rooms` writes docs/pictures/rooms.svg."""

import sys
import tomllib
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "pictures" / "rooms.svg"
ROW, WIDTH, LEFT, ARCS = 34, 560, 20, 190  # pixels: height and width of a room, margin, room for the arcs
STYLE = """<style>
  text { font: 13px system-ui, sans-serif; fill: #1f2328 } .name { font-weight: 600 }
  .quiet { fill: #59636e; font-size: 12px }
  rect { fill: #f6f8fa; stroke: #d1d9e0 } path { fill: none; stroke: #8b949e; stroke-width: 1 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .quiet { fill: #9198a1 } rect { fill: #161b22; stroke: #3d444d }
  }
</style>"""


@dataclass(frozen=True)
class Room:
    """A package of modules with one purpose, and the rooms that it imports."""

    name: str
    purpose: str
    modules: int
    imports: tuple[str, ...]


def layers(package: str, root: Path = ROOT) -> list[str]:
    """Return the rooms of a package from top to bottom, as the import contract orders them."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    return next(one["layers"] for one in contracts if one.get("containers") == [package])


def rooms(package: str, root: Path = ROOT) -> list[Room]:
    """Return the rooms of a package from top to bottom."""
    graph = grimp.build_graph(package, cache_dir=None, exclude_type_checking_imports=True)
    names = layers(package, root)
    squashed = {name: graph.find_descendants(f"{package}.{name}") | {f"{package}.{name}"} for name in names}
    found = []
    for name in names:
        files = [file for file in (root / package / name).rglob("*.py") if file.name != "__init__.py"]
        reached = {one for module in squashed[name] for one in graph.find_modules_directly_imported_by(module)}
        imports = tuple(other for other in names if other != name and reached & squashed[other])
        purpose = (import_module(f"{package}.{name}").__doc__ or "").strip().split("\n")[0]
        found.append(Room(name, purpose, len(files), imports))
    return found


def direct(room: Room, found: list[Room]) -> list[str]:
    """Return the rooms that a room imports and reaches through no other: the rest follows."""
    known = {one.name: set(one.imports) for one in found}
    for one in reversed(found):
        known[one.name] |= set().union(*(known[other] for other in one.imports))
    return [name for name in room.imports if not any(name in known[other] for other in room.imports if other != name)]


def drawn(package: str, found: list[Room], top: int) -> str:
    """Return the rooms as boxes, one below the other, and an arc on the right from each to the rooms it imports."""
    place = {room.name: top + 24 + index * (ROW + 8) for index, room in enumerate(found)}
    parts = [f'<text class="name" x="{LEFT}" y="{top + 12}">{package}</text>']
    for room in found:
        y = place[room.name]
        facts = f"{room.modules} module{'s' * (room.modules != 1)}"
        parts += [
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{ROW}" rx="6"/>',
            f'<text class="name" x="{LEFT + 12}" y="{y + 15}">{room.name}</text>',
            f'<text class="quiet" x="{LEFT + 12}" y="{y + 29}">{escape(room.purpose)}</text>',
            f'<text class="quiet" x="{LEFT + WIDTH - 12}" y="{y + 15}" text-anchor="end">{facts}</text>',
        ]
        for other in direct(room, found):
            begin, end = y + ROW // 2 + 4, place[other] + ROW // 2 - 4
            reach = 18 + (end - begin) / (len(found) * (ROW + 8)) * (ARCS - 30)
            x = LEFT + WIDTH
            curve = f"M{x} {begin} C{x + reach:.0f} {begin} {x + reach:.0f} {end} {x + 5} {end}"
            parts.append(f'<path d="{curve}" marker-end="url(#a)"/>')
    return "\n".join(parts)


def picture(root: Path = ROOT) -> str:
    """Return both packages as one SVG: the flows stand on the library."""
    both = {package: rooms(package, root) for package in ("flows", "pvqae")}
    top, parts = 10, []
    for package, found in both.items():
        parts.append(drawn(package, found, top))
        top += 40 + len(found) * (ROW + 8)
    tip = '<path d="M0 0 L6 3 L0 6"/>'
    arrow = (
        f'<defs><marker id="a" markerWidth="7" markerHeight="6" refX="6" refY="3" orient="auto">{tip}</marker></defs>'
    )
    size = f'viewBox="0 0 {LEFT + WIDTH + ARCS} {top}" width="{LEFT + WIDTH + ARCS}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{STYLE}\n{arrow}\n' + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    OUT.write_text(picture(), "utf-8")
    sys.stdout.write(f"{OUT}\n")
