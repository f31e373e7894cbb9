"""Where every file of a workspace is: the contract between the stages of dvc.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# What git sets for a hook, and a person by hand: it points at one repository, wherever a command runs. Settings
# (GIT_CONFIG_*) stay: they may be what lets git read a repository at all.
_OF_ONE_REPOSITORY = frozenset(
    f"GIT_{name}"
    for name in (
        *("DIR", "WORK_TREE", "IMPLICIT_WORK_TREE", "INDEX_FILE", "PREFIX", "COMMON_DIR", "NAMESPACE"),
        *("OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES", "QUARANTINE_PATH", "SHALLOW_FILE", "GRAFT_FILE"),
    )
)

ARRIVED = "arrived"  # folder of a dataset for images that came later than the dataset itself


@dataclass(frozen=True)
class Layout:
    """Paths below a workspace `root` for one dataset `name`; nothing is created here."""

    root: Path
    name: str

    @property
    def data(self) -> Path:
        """The root of all paths in the manifest."""
        return self.root / "data"

    @property
    def raw(self) -> Path:
        return self.data / "raw" / self.name

    @property
    def classes_file(self) -> Path:
        return self.data / "classes.yaml"

    @property
    def manifest(self) -> Path:
        return self.data / "manifest.csv"

    @property
    def quarantine(self) -> Path:
        return self.data / "quarantine.csv"

    @property
    def ignored(self) -> Path:
        """The dataset's files that nothing uses, each with the reason."""
        return self.data / "ignored.csv"

    @property
    def statistics(self) -> Path:
        return self.data / "statistics.csv"

    @property
    def gate_images(self) -> Path:
        return self.data / "gate"

    @property
    def masks(self) -> Path:
        """Masks that were drawn from annotations, or united from several files."""
        return self.data / "masks"

    @property
    def rows(self) -> Path:
        """The checked rows, with the file of their hashes."""
        return self.data / "rows"

    def network_rows(self, network: str) -> Path:
        return self.rows / "networks" / f"{network}.csv"

    def class_rows(self, category: str, part: str) -> Path:
        """Return the rows of a class; `part` is normals (train and calibrate), test or gate."""
        return self.rows / "classes" / category / f"{part}.csv"

    @property
    def models(self) -> Path:
        return self.root / "models" / self.name

    def network(self, network: str) -> Path:
        return self.models / "networks" / network

    def timing(self, network: str) -> Path:
        """Return the file of wall-clock facts, next to the network: a rebuilt network has the same hash."""
        return self.models / "timings" / f"{network}.json"

    def prior(self, group: str) -> Path:
        return self.models / "priors" / group

    def bundle(self, category: str) -> Path:
        return self.models / category / "bundle"

    @property
    def reports(self) -> Path:
        return self.root / "reports" / self.name

    def class_report(self, category: str) -> Path:
        return self.reports / "classes" / category

    def work(self, owner: str, key: str) -> Path:
        """Return the folder of unfinished work with checkpoints and progress: never tracked, never an output."""
        return self.root / ".pvqae" / "work" / self.name / owner / key

    @property
    def cache(self) -> Path:
        """What can be computed again; one place for a project and all workspaces below its .pvqae."""
        around = [folder for folder in self.root.absolute().parents if folder.name == ".pvqae"]
        return (around[-1] if around else self.root / ".pvqae") / "cache"

    @property
    def features(self) -> Path:
        """Kept features of images."""
        return self.cache / "features"


def find_root(start: Path) -> Path | None:
    """Return the nearest folder at or above `start` that holds params.yaml and dvc.yaml: a project."""
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    return None


def outside_hooks(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which git looks for the repository from the folder that it works in."""
    return {key: value for key, value in environ.items() if key not in _OF_ONE_REPOSITORY}
