"""What a train run came to: one row per class, for the terminal, Prefect's page and the flow's caller."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from flows.versions.registration import Registered
from pvqae.core.errors import PvqaeError

FIGURES = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "AUPRO": "aupro",
    "Seg F1": "seg_f1",
    "threshold": "threshold",
    "false alarms": "false_alarm_rate",
}


@dataclass(frozen=True)
class Summary:
    """`ran` and `restored` are stages; both empty, and no version new: nothing had changed."""

    dataset: str
    figures: Mapping[str, Any]  # reports/<dataset>/metrics.json
    ran: tuple[str, ...]
    restored: tuple[str, ...]
    versions: tuple[Registered, ...]
    uncommitted: tuple[str, ...]  # code files that kept every new version from being registered
    report: Path
    tracking_uri: str
    mlflow_run: str
    warnings: tuple[str, ...] = ()  # of the check of the data
    untold: tuple[str, ...] = ()  # lines on messages that did not arrive

    @property
    def nothing_changed(self) -> bool:
        """Whether no stage did anything and no version is new."""
        return not (self.ran or self.restored or any(version.new for version in self.versions))

    def rows(self) -> list[dict[str, str]]:
        """Return one dict per class, last the mean: column → printed value."""
        found = []
        registered = {item.category: _version_text(item) for item in self.versions}
        for name, figures in self.figures["classes"].items():
            cells = {column: _cell(figures.get(key)) for column, key in FIGURES.items()}
            found.append({"class": name, **cells, "version": registered.get(name, "-")})
        mean = {column: _cell(self.figures["mean"].get(key)) for column, key in FIGURES.items()}
        return [*found, {"class": "mean", **mean, "version": ""}]

    def table(self) -> Table:
        """Return a table that fits 80 columns if names of classes are short: headers wrap, cells don't."""
        shown = Table(title=f"{self.dataset}: {self.report}", title_justify="left", box=box.SIMPLE_HEAD)
        shown.show_edge, shown.pad_edge, shown.padding = False, False, (0, 1, 0, 0)
        for name in self.rows()[0]:
            cells = [row[name] for row in self.rows()]
            widest = max(map(len, [*name.split(), *cells]))
            shown.add_column(name, justify="left" if name in ("class", "version") else "right", width=widest)
        for row in self.rows():
            shown.add_row(*row.values(), style="bold" if row["class"] == "mean" else None)
        return shown

    def sentences(self) -> list[str]:
        """Say what happened, and why the rest did not."""
        warned = [*(f"Warning about the data: {text}" for text in self.warnings), *self.untold]
        if self.nothing_changed and not self.uncommitted:
            return ["Nothing changed: no stage ran, no version registered.", *warned]
        found = [f"Stages run: {_listed(self.ran)}. Taken from DVC's cache: {_listed(self.restored)}."]
        if self.uncommitted:
            files = ", ".join(self.uncommitted[:10]) + (", ..." if len(self.uncommitted) > 10 else "")
            found.append(
                f"NOT REGISTERED: this code differs from the last commit: {files}. A version must be rebuildable from "
                "git: commit them, then run again (nothing is trained again)."
            )
        else:
            found += [f"{item.category}: {_fate(item)}" for item in self.versions if item.new or not item.version]
        return [*found, *warned]

    def commands(self, environ: Mapping[str, str], opener: str) -> list[tuple[str, str]]:
        """Return what to type next: a purpose and a command each, which any shell runs in any folder."""
        found = [("open the report", shlex.join([opener, str(self.report / "index.html")]))]
        if self.tracking_uri.startswith("http"):
            found.append(("open MLflow", shlex.join([opener, self.tracking_uri])))
        else:
            store = ["--backend-store-uri", self.tracking_uri]
            found.append(("MLflow's pages", shlex.join([sys.executable, "-m", "mlflow", "ui", *store])))
        if url := environ.get("PREFECT_API_URL"):
            found.append(("open Prefect", shlex.join([opener, url.removesuffix("/api")])))
        else:
            home = f"PREFECT_HOME={environ.get('PREFECT_HOME', '')}"
            found.append(
                ("Prefect's pages", shlex.join(["env", home, sys.executable, "-m", "prefect", "server", "start"]))
            )
        return found

    def markdown(self) -> str:
        """Return the table and the links as one Prefect artifact."""
        lines = self.rows()
        head = list(lines[0])
        body = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        body += ["| " + " | ".join(row.values()) + " |" for row in lines]
        links = [
            f"* report: `{self.report / 'index.html'}`",
            f"* MLflow: `{self.tracking_uri}`, run `{self.mlflow_run}`",
        ]
        return "\n".join([f"# {self.dataset}", *self.sentences(), "", *body, "", *links])


class ClassesFailed(PvqaeError):  # noqa: N818 - it names an outcome, not a fault of the code
    """Some classes could not be trained, evaluated or registered; `summary` tells what came of the others."""

    def __init__(self, failed: Sequence[str], summary: Summary) -> None:
        again = "Other classes went on. Repair this and run again: what is done stays."
        super().__init__("\n".join([*failed, again]))
        self.failed, self.summary = tuple(failed), summary


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _version_text(version: Registered) -> str:
    if not version.version:
        return "not registered"
    return f"{version.version}{' ' + version.alias if version.alias else ''}{' (new)' if version.new else ''}"


def _fate(version: Registered) -> str:
    """Say what became of a new bundle and why."""
    what = f"version {version.version} is {version.alias}" if version.version else "not registered"
    return f"{what}: {'; '.join(version.reasons)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
