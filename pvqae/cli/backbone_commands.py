"""`pvqae backbone`: which networks are kept on this machine, what one gives, and how it gets here."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvqae.cli.console import console, quiet, to_json

if TYPE_CHECKING:
    from pvqae.core.config import Params

app = typer.Typer(
    no_args_is_help=True, help="Networks by name, for model.backbone: what is kept here, what each one gives."
)
_HUB = "https://huggingface.co"
_Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout, for programs.")]
_Sha256 = Annotated[str, typer.Option(help="What the file's sha256 must be; needed for a .pth or .bin.")]
_RUNS = 5  # passes that the milliseconds are the median of


@app.command("list", epilog="Example: pvqae backbone list")
def _list(as_json: _Json = False) -> None:
    """List the networks that are installed or kept on this machine."""
    from pvqae.model import backbones, weights

    found = [{"backbone": name, "licence": "Apache-2.0", "source": "installed"} for name in backbones.BACKBONES]
    found += [
        {**one, "backbone": f"{one['backbone']}@{one['sha256'][: weights.PIN]}", "megabytes": one["bytes"] / 1e6}
        for one in weights.kept()
    ]
    if as_json:
        typer.echo(to_json(found))
        return
    for one in found:
        size = f"{one['megabytes']:.1f} MB" if "megabytes" in one else "-"
        typer.echo(f"{one['backbone']}  {size}  {one.get('licence') or 'licence unknown'}  {one.get('source', '')}")


@app.command("add", epilog="Example: pvqae backbone add timm:resnet18.a1_in1k downloads/resnet18.safetensors")
def _add(
    name: Annotated[str, typer.Argument(help="timm:NAME, or hf:FOLDER with config.json and model.safetensors.")],
    file: Annotated[Path | None, typer.Argument(help="The weights: .safetensors, .pth or .bin; not for hf:.")] = None,
    sha256: _Sha256 = "",
    licence: Annotated[str, typer.Option(help="The licence of the weights, to be shown by `list`.")] = "",
) -> None:
    """Check weights against their network, keep them in the user's cache, print the line for params.yaml."""
    from pvqae.core.errors import ConfigError
    from pvqae.model import weights

    family, _, own = name.partition(":")
    if (family == "hf") == (file is not None):
        raise ConfigError(f"{name}: expected {'no file but the folder in the name' if file else 'a file of weights'}")
    data = weights.from_file(file, sha256) if file else weights.from_folder(Path(own))
    typer.echo(_keep(name, data, licence, str(file or own)))


@app.command("show", epilog="Example: pvqae backbone show timm:resnet18.a1_in1k")
def _show(
    name: Annotated[str, typer.Argument(help="A network of `list`, or what to set model.backbone to.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override of params.yaml, key=value.")] = None,
    as_json: _Json = False,
) -> None:
    """Show what is read of a network with the params here: layers, preprocessing, licence, megabytes, milliseconds."""
    with quiet(as_json):
        found = _examined(name, tuple(set_ or ()))
    if as_json:
        typer.echo(to_json(found))
        return
    for key, value in found.items():
        lines = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for line in lines:
            words = ", ".join(f"{k} {v}" for k, v in line.items()) if isinstance(line, dict) else line
            console().print(f"{key}: {words}", highlight=False, markup=False)


@app.command("fetch", epilog="Example: pvqae backbone fetch timm:resnet18.a1_in1k --accept-licence")
def _fetch(
    name: Annotated[str, typer.Argument(help="timm:NAME, or hf:ORGANISATION/MODEL.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Confirm that you have read the licence of the weights.")
    ] = False,
    hub: Annotated[str, typer.Option(help="Address of the hub, or of a mirror.")] = _HUB,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the model there.")] = "main",
    sha256: _Sha256 = "",
) -> None:
    """Download weights by name: only when you run this, and only with their licence accepted."""
    typer.echo(_fetched(name, hub.rstrip("/"), revision, sha256, accept_licence))


def _keep(name: str, data: bytes, licence: str, source: str) -> str:
    """Keep weights that fit the network `name`; return what to do next."""
    from pvqae.model import foreign, weights

    foreign.network(name, data)
    sha256 = weights.keep(data, {"backbone": name, "licence": licence, "source": source})
    return f"kept {len(data) / 1e6:.1f} MB, sha256 {sha256}\nparams.yaml:  backbone: {name}@{sha256[: weights.PIN]}"


def _params(overrides: tuple[str, ...]) -> "Params":
    """Return the params of the current folder, the defaults where it has none."""
    from pvqae.core import config

    if Path("params.yaml").exists():
        return config.load("params.yaml", overrides)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text("{}\n", "utf-8")
        return config.load(Path(folder) / "params.yaml", overrides)


def _examined(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    import torch

    from pvqae.model import backbones, foreign, weights

    base, pin = foreign.split(name)
    about = [one for one in weights.kept() if one["backbone"] == base and one["sha256"].startswith(pin)]
    if ":" in name and not pin and len(about) == 1:
        name = f"{base}@{about[0]['sha256'][: weights.PIN]}"
    params = _params((*overrides, f"model.backbone={name}"))
    backbone = backbones.make(params.model, size=params.image.size).eval()
    pixels = torch.rand(1, 3, params.image.size, params.image.size)
    seconds = []
    for _ in range(_RUNS + 1):  # the first one makes room
        begun = time.perf_counter()
        with torch.no_grad():
            features = backbone(pixels)
        seconds.append(time.perf_counter() - begun)
    facts: dict[str, Any] = {"backbone": name, **(backbone.facts() or {"sha256": backbone.weights_sha256})}
    facts.pop("name", None)
    if isinstance(network := getattr(getattr(backbone, "network", None), "network", None), foreign.Network):
        facts["layers"] = ", ".join(tap.name for tap in network.offered)
    facts["levels"] = ["x".join(map(str, x.shape[1:])) for x in features.levels]
    facts["joint"] = "x".join(map(str, backbone.joint(features).shape[1:]))
    facts["licence"] = (about[0]["licence"] or "unknown") if about else "Apache-2.0"
    facts["megabytes"] = round(sum(x.numel() * x.element_size() for x in backbone.state_dict().values()) / 1e6, 1)
    facts["milliseconds"] = round(sorted(seconds[1:])[_RUNS // 2] * 1000, 1)
    return facts


def _fetched(name: str, hub: str, revision: str, sha256: str, accepted: bool) -> str:
    from pvqae.core.errors import ConfigError
    from pvqae.datasets import fetch
    from pvqae.model import weights

    place, licence = _published(name, hub)
    if not accepted:
        raise ConfigError(
            f"{name}: {hub}/{place} is published under the licence {licence or 'that its page names'}; read it there, "
            "and to fetch the weights on these terms repeat the command with --accept-licence"
        )
    repair = (
        f"look at {hub}/{place}: some models ask for a registration; download the files there and run "
        "`pvqae backbone add`, or name a mirror with --hub"
    )
    files = ["model.safetensors"] + ["config.json", "preprocessor_config.json"] * name.startswith("hf:")
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            fetch.download(f"{hub}/{place}/resolve/{revision}/{file}", Path(folder) / file, repair)
        data = weights.from_file(Path(folder) / files[0], sha256)
        if name.startswith("hf:"):
            data = weights.from_folder(Path(folder))
    return _keep(name, data, licence, f"{hub}/{place}@{revision}")


def _published(name: str, hub: str) -> tuple[str, str]:
    """Return where on a hub a network's weights are, and their licence, "" where none is stated."""
    from pvqae.core.errors import ConfigError
    from pvqae.model import foreign

    family, _, own = name.partition(":")
    if family == "timm":
        timm = foreign.library("timm")
        settings = timm.get_pretrained_cfg(own) if timm.is_model(own) else None
        if settings is None or not settings.hf_hub_id:
            raise ConfigError(f"{name}: timm names no published weights of it; add a file with `pvqae backbone add`")
        return settings.hf_hub_id, settings.license or ""
    if family != "hf" or own.count("/") != 1:
        raise ConfigError(f"expected timm:NAME or hf:ORGANISATION/MODEL to fetch, found {name}")
    return own, _licence(f"{hub}/api/models/{own}")


def _licence(url: str) -> str:
    import requests

    from pvqae.core.errors import DataError

    try:
        answer = requests.get(url, timeout=(10.0, 60.0))
        answer.raise_for_status()
        return str((answer.json().get("cardData") or {}).get("license") or "")
    except (requests.RequestException, ValueError, AttributeError) as error:
        raise DataError(f"{url}: {error}; correct the name, or name a mirror with --hub") from None
