"""params.yaml as frozen, typed values. An unknown key is an error that names the nearest known one."""

import difflib
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pvqae.errors import ConfigError

Auto = Literal["auto"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shares(Section):
    calibrate: float = Field(0.15, ge=0, lt=1)
    gate: float = Field(0.10, ge=0, lt=1)
    test: float = Field(0.20, ge=0, lt=1)


class Data(Section):
    name: str = Field("demo", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    source: str = "demo"
    root: str = ""  # only the flows read it: where `data add` takes the images from
    categories: tuple[str, ...] = ()
    protocol: Literal["grouped", "random"] = "grouped"
    shares: Shares = Shares()
    min_normals: int = Field(8, ge=2)
    max_quarantine: float = Field(0.05, ge=0, le=1)


class Image(Section):
    size: int = Field(256, ge=64, le=2048, multiple_of=32)
    aspect: Literal["auto", "letterbox", "squash", "tile"] = "auto"
    overlap: float = Field(0.25, ge=0, le=0.5)


class Model(Section):
    backbone: str = "efficientnet_lite0"
    levels: int = Field(3, ge=1, le=4)
    width: int = Field(64, ge=8, multiple_of=8)
    code_dim: int = Field(32, ge=4, multiple_of=4)
    codes: int = Field(512, ge=2)
    commitment: float = Field(0.25, ge=0)
    ema_decay: float = Field(0.99, gt=0, lt=1)
    network: Literal["per_class", "shared"] = "per_class"


class Memory(Section):
    codes: int = Field(2048, ge=1)
    patches: int = Field(60000, ge=1)


class Train(Section):
    steps: int = Field(60, ge=1)
    batch: int = Field(16, ge=1)
    lr: float = Field(2e-3, gt=0)
    warmup: float = Field(0.1, ge=0, le=1)
    random_cells: float = Field(0.3, ge=0, le=1)
    temperature: tuple[float, float] = (1.0, 0.5)
    schedule: str = "linear"
    lambda_max: float = Field(1.25, ge=0)
    kappa: float | Auto = "auto"
    richness: str = "dwt_entropy"
    horizontal_flip: bool = False
    adversarial: bool = False


class Prior(Section):
    grouping: str = "per_class"
    steps: int = Field(150, ge=1)
    width: int = Field(64, ge=8, multiple_of=8)
    lr: float = Field(3e-3, gt=0)


class Score(Section):
    recon: str = "memory"
    prior: str = "gaussian"
    fusion: str = "recon"
    image_scale: str = "location"
    map_scale: str = "global"
    blur: float = Field(4.0, ge=0)
    top: float = Field(0.01, gt=0, le=1)


class Calibration(Section):
    false_alarm_rate: float = Field(0.05, gt=0, lt=1)
    kfold_below: int = Field(200, ge=0)
    folds: int = Field(4, ge=2)


class Evaluation(Section):
    pictures: int = Field(6, ge=0, le=50)


class Compute(Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "float32"] = "auto"
    parallel: int | Auto = "auto"
    threads: int | Auto = "auto"


class Flow(Section):
    retries: int = Field(2, ge=0)
    push: bool = True
    tracking_uri: str = "auto"


class Params(Section):
    seed: int = Field(0, ge=0)
    data: Data = Data()
    image: Image = Image()
    model: Model = Model()
    memory: Memory = Memory()
    train: Train = Train()
    prior: Prior = Prior()
    score: Score = Score()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()
    flow: Flow = Flow()


def known_keys(model: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """Every dotted key of `Params`, e.g. `train.steps`."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys += known_keys(cast(type[BaseModel], kind), f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return keys


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg']}, found {error['input']!r}"
    near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.4)
    return f"{key}: unknown key" + (f", did you mean {near[0]}?" if near else "")


def parse(values: dict[str, Any], where: str = "params") -> Params:
    """Checked `Params` from nested dicts. Raises `ConfigError` that lists every wrong key of `where`."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cast(dict[str, Any], item)) for item in error.errors()]
        raise ConfigError(f"{where} is not valid:\n  " + "\n  ".join(lines)) from None


def _merge(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section")
        values = child
    values[last] = value


def load(path: Path | str = "params.yaml", overrides: tuple[str, ...] = ()) -> Params:
    """Read a params file and apply `key=value` overrides (values are YAML).

    Raises `ConfigError` when the file is missing, is not YAML, or a key or value is not known.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; run from the project's root or name the file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(values).__name__}")
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: expected key=value, e.g. train.steps=100")
        try:
            _merge(values, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {item}: the value is not YAML: {error}") from None
    return parse(values, where=str(path) + (f" with {', '.join(overrides)}" if overrides else ""))


def dump(params: Params) -> str:
    """The params as YAML text that `load` reads back to an equal value."""
    return yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False)
