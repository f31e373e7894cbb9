"""Download a public dataset when the user asks: the verb `pvqae data fetch NAME`. Nothing else here uses a network."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pvqae.core import files
from pvqae.core.errors import ConfigError, DataError, IntegrityError
from pvqae.datasets import sources
from pvqae.datasets.archives import download, extract


@dataclass(frozen=True)
class Archive:
    """Where a dataset is published, and under what terms. `sha256` None: recorded when it is first fetched."""

    licence: str
    url: str
    sha256: str | None


ARCHIVES = {
    "mvtec": Archive(
        "MVTec AD, Copyright MVTec Software GmbH: CC BY-NC-SA 4.0, no commercial use. "
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        "https://www.mydrive.ch/shares/38536/3830184030e49fe74747669442f0f282/download/420938113-1629952094/"
        "mvtec_anomaly_detection.tar.xz",
        "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
    ),
    "btad": Archive(
        "beanTech Anomaly Detection (Mishra et al. 2021, VT-ADL): see the terms of its authors and cite them. "
        "https://github.com/pankajmishra000/VT-ADL",
        "https://avires.dimi.uniud.it/papers/btad/btad.zip",
        "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
    ),
    "mtsd": Archive(
        "Magnetic Tile Surface Defects (Huang et al. 2018): no licence is stated, the authors ask for a citation. "
        "https://github.com/abin24/Magnetic-tile-defect-datasets.",
        "https://github.com/abin24/Magnetic-tile-defect-datasets./archive/refs/heads/master.zip",
        None,  # made by GitHub on request
    ),
}


def _recorded(record: Path) -> dict[str, str]:
    """sha256 by address, of what was fetched before."""
    return dict(json.loads(record.read_text("utf-8"))) if record.exists() else {}


def _remember(record: Path, url: str, sha256: str) -> None:
    hashes = _recorded(record) | {url: sha256}
    part = record.with_name(record.name + ".part")
    part.write_text(json.dumps(hashes, indent=2, sort_keys=True) + "\n", "utf-8")
    os.replace(part, record)


def _expected(archive: Archive, url: str, sha256: str | None, record: Path) -> str | None:
    """The hash that the archive must have: the user's, ours, or the one of the first time; all that exist agree."""
    built_in = archive.sha256 if url == archive.url else None
    known = {h.lower() for h in (sha256, built_in, _recorded(record).get(url)) if h}
    if len(known) > 1:
        raise IntegrityError(
            f"{url}: --sha256, the built-in hash and {record} contradict each other: {', '.join(sorted(known))}; "
            f"if the archive was replaced on purpose, remove its line from {record}"
        )
    return known.pop() if known else None


def _dataset_root(name: str, folder: Path) -> Path:
    """The folder that has the layout: archives often wrap it in one of their own. Raises `DataError` if none has."""
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if sources.SOURCES[name].parts(place) and (place == folder or not sources.SOURCES[name].parts(folder)):
            return place
    sources.categories(name, folder)
    return folder


def _unpack(name: str, file: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        extract(file, Path(place) / "all")
        os.replace(_dataset_root(name, Path(place) / "all"), out)


def fetch(
    name: str, out: Path, record: Path, url: str | None = None, sha256: str | None = None, accept_licence: bool = False
) -> Path:
    """Download dataset `name` to the folder `out` and return it; the archive's hash is kept in the JSON file `record`.

    Raises `ConfigError` for an unknown name or a licence that was not accepted, `DataError` when `out` exists, the
    download fails or holds another layout, `IntegrityError` for another hash than before or an unsafe archive.
    """
    if name not in ARCHIVES:
        raise ConfigError(f"expected one of {', '.join(ARCHIVES)} to fetch, found {name}")
    archive = ARCHIVES[name]
    if not accept_licence:
        raise ConfigError(f"{archive.licence}\nTo fetch it on these terms, repeat the command with --accept-licence")
    if out.exists():
        raise DataError(f"{out}: expected no such folder yet; remove it to fetch {name} again")
    url = url or archive.url
    expected = _expected(archive, url, sha256, record)
    file = out.with_name(f".{out.name}.archive")
    download(url, file)
    found = files.digest(file)
    if expected not in (None, found):
        file.unlink()
        raise IntegrityError(
            f"{url}: expected sha256 {expected}, found {found}; the file was removed, ask its publisher"
        )
    _unpack(name, file, out)
    _remember(record, url, found)
    file.unlink()
    return out
