"""Which mask belongs to which image, by names alone: masks are kept in many places and called many things.

Known for an image scratch/000.png: masks/scratch/000.png, ground_truth/scratch/000_mask.png, scratch_GT/000.png,
scratch/masks/000.png, masks/scratch/000/1.png, masks/000.png and scratch/000_mask.png. A mask that two images could
have, or one of two that an image could have, is nobody's: a wrong mask would spoil the figures without a word.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from pvqae.samples import images

Parts = tuple[str, ...]  # of a path below some folder, the file's name last
FOLDER = "masks"
_FOLDER = r"(?:gt|ground[ _-]?truth|masks?)(?:[ _-](?:gt|masks?))?"
_IS_FOLDER = re.compile(_FOLDER, re.IGNORECASE)
_OF_KIND = re.compile(rf"(.+?)[ _-]{_FOLDER}", re.IGNORECASE)  # scratch_GT/
# May be the name of a kind, too: masks only where it holds a kind's folder.
_PERHAPS = frozenset({"label", "labels", "annotation", "annotations", "segmentation", "segmentations"})
_SAYS_MASK = re.compile(r"^(?:mask|gt)[ ._-]+(?=.)|(?<=.)[ ._-]+(?:masks?|gt|ground[ _-]?truth)$", re.IGNORECASE)
_MAY_SAY = re.compile(r"^(?:label|seg)[ ._-]+(?=.)|(?<=.)[ ._-]+(?:labels?|seg|segmentation)$", re.IGNORECASE)
_Named = tuple[Parts, Parts]  # the parts that name an image or a mask from its kind on, and its whole parts


def is_folder(name: str) -> bool:
    """Return whether a folder of that name holds masks."""
    return _IS_FOLDER.fullmatch(name) is not None


def _fold(text: str) -> str:
    """Return one text for names that differ in case only, or in how an accent is encoded."""
    return unicodedata.normalize("NFC", text).casefold()


def _stem(parts: Parts) -> str:
    return parts[-1].rpartition(".")[0] or parts[-1]  # pathlib takes ten times as long, which a large dataset feels


def _plain(stem: str) -> str:
    """Return the stem of the image that a mask's stem names: 000_mask, mask_000, 000_GT, 000.jpg → 000."""
    plain = PurePosixPath(_MAY_SAY.sub("", _SAYS_MASK.sub("", stem)))
    return plain.stem if plain.suffix.lower() in images.SUFFIXES else plain.name


def _of_mask(parts: Parts, kinds: frozenset[str]) -> Parts | None:
    """Return the parts that name a mask in a folder of masks; None in no such folder."""
    own = _OF_KIND.fullmatch(parts[0]) if len(parts) > 1 else None
    if own and own[1] in kinds:
        return (own[1], *parts[1:])
    if len(parts) > 2 and parts[0].casefold() in _PERHAPS and parts[1] in kinds - {parts[0]}:
        return parts[1:]
    kept = (*(part for part in parts[:-1] if not is_folder(part)), parts[-1])
    return kept if len(kept) < len(parts) else None


def divide(files: Iterable[_Named]) -> tuple[list[_Named], list[_Named]]:
    """Return images, and masks: those in a folder of masks, and those next to their image (000.png,
    000_mask.png).
    """
    every = list(files)
    kinds = frozenset(name[0] for name, _ in every if len(name) > 1 and not is_folder(name[0]))
    named = [(_of_mask(name, kinds), name, whole) for name, whole in every]
    stems = {(*name[:-1], _stem(name)) for mask, name, _ in named if mask is None}
    shown: list[_Named] = []
    marks: list[_Named] = []
    for mask, name, whole in named:
        image = _SAYS_MASK.sub("", _stem(name))
        neighbour = image != _stem(name) and (*name[:-1], image) in stems
        if mask is None and not neighbour:
            shown.append((name, whole))
        else:
            marks.append((mask or name, whole))
    return shown, marks


def _keys_of_image(parts: Parts) -> tuple[Parts, ...]:
    """Return what `_keys_of_mask` gives for a mask of this image, from the strictest to the loosest."""
    *above, stem = *parts[:-1], _stem(parts)
    same = tuple(map(_fold, (*above, stem)))
    return ("=", *above, stem), ("~", *same), ("kind", same[0], same[-1]), ("any", same[-1])


def _keys_of_mask(parts: Parts, kinds: frozenset[str]) -> list[Parts]:
    """Return keys of the image that a mask marks, in the order in which they are tried: the same path; the same but for
    case, accents and a word that says mask; below the kind's folder a folder named after the image, or the image's
    name; and both where no folder names a kind.
    """
    *above, stem = *parts[:-1], _stem(parts)
    plain, named = _fold(_plain(stem)), bool(above) and _fold(above[0]) in kinds
    loose = [_fold(above[-1]), plain] if len(above) > named else [plain]
    head = ("kind", _fold(above[0])) if named else ("any",)
    return [("=", *above, stem), ("~", *map(_fold, above), plain), *((*head, name) for name in loose)]


def match(shown: Sequence[Parts], marks: Sequence[Parts], kinds: Iterable[str]) -> tuple[dict[int, int], list[int]]:
    """Map images to masks, both by their place in the lists; and the masks that name no image at all. `kinds`: all
    names of folders of images.
    """
    images_of: dict[Parts, list[int]] = defaultdict(list)
    for image, parts in enumerate(shown if marks else ()):
        for key in _keys_of_image(parts):
            images_of[key].append(image)
    folded = frozenset(map(_fold, kinds))
    keys = [_keys_of_mask(parts, folded) for parts in marks]
    chosen: dict[int, int] = {}
    left, unclear = list(range(len(marks))), set()
    for step in range(max(map(len, keys), default=0)):
        claims: dict[int, list[int]] = defaultdict(list)
        for mask in left:
            named = images_of.get(keys[mask][step], []) if step < len(keys[mask]) else []
            if len(named) == 1:
                claims[named[0]].append(mask)
            elif named:
                unclear.add(mask)
        chosen |= {image: own[0] for image, own in claims.items() if len(own) == 1 and image not in chosen}
        settled = {mask for own in claims.values() for mask in own}
        left = [mask for mask in left if mask not in settled]
    return chosen, [mask for mask in left if mask not in unclear]
