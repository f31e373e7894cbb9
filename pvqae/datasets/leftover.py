"""The files of a dataset that nothing uses, each with the reason: whatever vanished without a word would be missed."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pvqae.core.files import shown
from pvqae.core.layout import ARRIVED
from pvqae.datasets import layouts
from pvqae.datasets.layouts import Found
from pvqae.datasets.masks import Parts
from pvqae.samples import images

NAMED, FOLDERS = 5, 12  # files and folders that a message names
# Pictures, videos and arrays that `images.SUFFIXES` has not.
_UNREAD = frozenset(
    (
        *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".gif", ".psd", ".exr", ".hdr"),
        *(".tga", ".pbm", ".pnm", ".pfm", ".pcx", ".ico", ".svg", ".pdf", ".dcm", ".raw", ".dng", ".nef", ".cr2"),
        *(".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".mp4", ".avi", ".mov", ".mkv", ".npy", ".npz", ".mat"),
    )
)
ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"))
_OTHER = "other"
_GOOD = (_OTHER, "the mask of a good part, which needs none")
_PART = (_OTHER, "drawn into the mask of its image, with others")


@dataclass(frozen=True)
class Left:
    """`kind` is image, mask or archive for what somebody may miss, else other."""

    path: str  # POSIX, below the dataset's root
    kind: str
    reason: str


def of(
    root: Path,
    found: Sequence[Found],
    unchosen: Collection[str],
    is_mask: Callable[[Parts], bool],
    reason: Callable[[Parts], str] = lambda parts: "",
) -> list[Left]:
    """Return the files below a dataset's `root` that are no image and no mask of `found`. `unchosen`: folders of
    classes that `data.categories` leaves out; `is_mask` and `reason`: of the dataset's layout.
    """
    used = {str(path) for f in found for path in (f.path, f.mask_path) if path}
    known = {str(path): _GOOD for f in found for path in f.unneeded}
    known |= {str(path): _PART for f in found if f.drawing for path in f.drawing.files}
    left = [(str(path), parts) for parts in layouts.files(root) if str(path := root.joinpath(*parts)) not in used]
    return [
        Left(shown("/".join(parts)), *(known.get(name) or _why(parts, unchosen, is_mask, reason(parts))))
        for name, parts in left
    ]


def _why(parts: Parts, unchosen: Collection[str], is_mask: Callable[[Parts], bool], reason: str) -> tuple[str, str]:
    suffix = PurePosixPath(parts[-1]).suffix.lower()
    if any(part.startswith(".") for part in parts):
        return _OTHER, "hidden"
    if unchosen and parts[0 if parts[0] != ARRIVED else min(1, len(parts) - 1)] in unchosen:
        return _OTHER, "of a class that data.categories leaves out"
    if reason:
        return _OTHER, reason
    if suffix in ARCHIVES:
        return "archive", "an archive: unpack it if it holds images"
    if suffix in _UNREAD:
        return "image", "a format that is not read: export it as PNG"
    if suffix not in images.SUFFIXES:
        return _OTHER, "no image"
    if is_mask(parts):
        return "mask", "a mask that clearly belongs to no single image"
    return "image", "in no folder that data.source looks into"


def told(left: Iterable[Left]) -> list[str]:
    """Return one sentence for each kind and reason of what somebody may miss: how many, and the first names."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in left:
        if item.kind != _OTHER:
            groups.setdefault((item.kind, item.reason), []).append(item.path)
    return [
        f"{_many(len(names), kind)} not looked at ({reason}): {_listed(names)}"
        for (kind, reason), names in sorted(groups.items())
    ]


def _many(n: int, kind: str) -> str:
    return f"{n} {kind}{'s' * (n > 1)}"


def _listed(names: Sequence[str], most: int = NAMED) -> str:
    """Return the first of many names."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def total(left: Sequence[Left]) -> str:
    """Return how many files nothing uses, in words."""
    kinds = Counter(item.kind for item in left)
    return f"Not looked at: {', '.join(_many(n, kind) for kind, n in sorted(kinds.items())) or 'nothing'}"


def folders(found: Iterable[Found], root: Path) -> str:
    """Return where images are and how many, the deepest folders first: one sees that a folder below good/ counts."""
    counts = Counter(f.path.parent for f in found)
    order = sorted(counts, key=lambda place: (-len(place.parts), place))
    names = [f"{shown(place.relative_to(root).as_posix())}/ ({counts[place]})" for place in order]
    return f"Images of {_listed(names, FOLDERS)}"
