"""params.yaml as frozen, typed values. An unknown key is an error that names the nearest known one."""

import difflib
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pvqae.core import plain_yaml
from pvqae.core.errors import ConfigError
from pvqae.core.plain_yaml import Place

_Auto = Literal["auto"]
# Values of 0.1 that nobody chose: they are dropped. Any other value of these keys is an error that says what to do.
_RETIRED: dict[str, tuple[object, str]] = {
    "memory.ridge": (0.1, "features are standardised and not whitened any more; remove it"),
    "score.image_levels": ("auto", "give score.image the weights of the memories"),
    "score.image_scale": ("auto", ""),
    "score.map_levels": ("auto", "give score.map the weights of the memories"),
    "score.map_scale": ("auto", ""),
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Shares(_Section):
    calibrate: float = Field(0.15, ge=0, lt=1)
    gate: float = Field(0.10, ge=0, lt=1)
    test: float = Field(0.20, ge=0, lt=1)


_Column = Literal["path", "label", "split", "mask", "part", "kind", "class"]

_DATASET, _REMOTE = r"^[a-z0-9][a-z0-9_-]*$", r"^([A-Za-z0-9_][A-Za-z0-9_./-]*)?$"
_BUCKET, _POOL = r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", r"^[a-z0-9][a-z0-9-]*$"  # S3's own rule, without dots
_NAME, _MAIL, _SENDER = r"^([A-Z][A-Z0-9_]*)?$", r"^[^\s@<>,]+@[^\s@<>,]+$", r"^([^\s@<>,]+@[^\s@<>,]+)?$"
_HOOK, _SERVER = r"^(https?://[^\s/@]+(/\S*)?|\$[A-Z][A-Z0-9_]*)?$", r"^([^\s/@:]+:\d{1,5})?$"
_BLOCK = r"^[a-z0-9-]+/[a-z0-9-]+$"
_FORMS = {  # what a pattern means, for an error
    _DATASET: "lower-case letters, digits, - and _, first a letter or a digit",
    _REMOTE: "the name of a git remote, such as origin",
    _BUCKET: "3 to 63 lower-case letters, digits and -, first and last a letter or a digit",
    _POOL: "lower-case letters, digits and -, first a letter or a digit",
    _NAME: "the name of an environment variable, such as LINE3_SECRET, not its value",
    _MAIL: "an address, such as quality@example.org",
    _SENDER: "an address, such as line-3@example.org",
    _HOOK: "http://... or https://... without a user, or $NAME of the environment variable that has the address",
    _SERVER: "HOST:PORT, such as mail.example.org:587",
    _BLOCK: "TYPE/NAME of a block of Prefect, such as slack-webhook/line-3",
}


class Data(_Section):
    name: str = Field("demo", pattern=_DATASET, max_length=100)
    source: str = "demo"
    root: str = ""  # only the flows read it: where `data add` takes the images from
    categories: tuple[str, ...] = ()
    protocol: Literal["grouped", "random"] = "grouped"
    shares: Shares = Shares()
    min_normals: int = Field(1, ge=1)
    max_quarantine: float = Field(0.05, ge=0, le=1)
    table: str = ""
    columns: dict[_Column, str] = {}
    good: tuple[str, ...] = ()
    annotations: str = ""


class Image(_Section):
    size: int = Field(320, ge=64, le=2048, multiple_of=32)
    aspect: Literal["auto", "letterbox", "squash", "tile"] = "auto"
    overlap: float = Field(0.25, ge=0, le=0.5)
    tiles: int = Field(1, ge=1, le=64)
    bits: Annotated[int, Field(ge=8, le=16)] | _Auto = "auto"


_Colours = tuple[float, float, float]


class Model(_Section):
    backbone: str = "efficientnet_lite0"
    weights: str = ""
    taps: tuple[str, ...] | _Auto = "auto"
    input: Annotated[int, Field(ge=32, le=4096)] | _Auto = "auto"
    mean: _Colours | _Auto = "auto"
    deviation: _Colours | _Auto = "auto"
    interpolation: Literal["auto", "nearest", "bilinear", "bicubic"] = "auto"
    precision: Literal["float32", "int8"] = "float32"
    levels: int = Field(3, ge=1, le=4)
    width: int = Field(64, ge=8, multiple_of=8)
    code_dim: int = Field(32, ge=4, multiple_of=4)
    codes: int = Field(512, ge=2)
    commitment: float = Field(0.25, ge=0)
    ema_decay: float = Field(0.99, gt=0, lt=1)
    network: Literal["per_class", "shared"] = "per_class"


class Memory(_Section):
    codes: int = Field(2048, ge=1)
    patches: int = Field(60000, ge=1)
    width: int = Field(320, ge=8)
    neighbours: int = Field(30, ge=0)


class Train(_Section):
    steps: int = Field(60, ge=0)
    batch: int = Field(8, ge=1)
    lr: float = Field(2e-3, gt=0)
    warmup: float = Field(0.1, ge=0, le=1)
    random_cells: float = Field(0.3, ge=0, le=1)
    temperature: tuple[float, float] = (1.0, 0.5)
    schedule: str = "linear"
    lambda_max: float = Field(1.25, ge=0)
    kappa: float | _Auto = "auto"
    richness: str = "dwt_entropy"
    horizontal_flip: bool = False
    adversarial: bool = False
    perceptual: float = Field(0.0, ge=0)
    warm_steps: int | _Auto = "auto"


class Prior(_Section):
    grouping: str = "per_class"
    clusters: int = Field(4, ge=1)
    steps: int = Field(150, ge=1)
    batch: int = Field(16, ge=1)
    width: int = Field(64, ge=8, multiple_of=8)
    lr: float = Field(5e-3, gt=0)


_Memory = Annotated[str, Field(pattern="^(joint|stride32|stride16|stride8|stride4|place)$")]
_Weights = Annotated[dict[_Memory, Annotated[float, Field(gt=0)]], Field(min_length=1)]


class Score(_Section):
    recon: str = "memory"
    prior: str = "gaussian"
    fusion: str = "recon"
    image: _Weights = {"joint": 2.0, "stride16": 1.0, "stride8": 1.0, "place": 1.0}
    image_scale: str = "damped"
    map: _Weights = {"joint": 1.0, "stride8": 1.0, "place": 2.0}
    map_scale: str = "least"
    blur: float = Field(2.0, ge=0)
    top: float = Field(0.01, gt=0, le=1)

    @property
    def reads_network(self) -> bool:
        """Whether the image score asks the trained network or its prior; a memory's score alone does not."""
        return self.recon != "memory" or self.fusion != "recon"


class Calibration(_Section):
    false_alarm_rate: float = Field(0.05, gt=0, lt=1)
    pixel_false_alarm_area: float = Field(0.001, gt=0, lt=1)
    kfold_below: int = Field(200, ge=0)
    folds: int = Field(4, ge=2)
    promise_from: int = Field(8, ge=0)


class Evaluation(_Section):
    pictures: int = Field(6, ge=0, le=50)


class Gate(_Section):
    margin: float = Field(0.01, gt=0, lt=1)
    confidence: float = Field(0.90, gt=0.5, lt=1)
    draws: int = Field(2000, ge=100)
    aupro_margin: float = Field(0.02, gt=0, lt=1)
    min_groups: int = Field(20, ge=2)
    newest: int = Field(200, ge=1)
    alarm_confidence: float = Field(0.95, gt=0.5, lt=1)
    min_kind: int = Field(10, ge=1)
    kind_drop: float = Field(0.05, ge=0, le=1)
    level_share: float = Field(0.98, gt=0, le=1)
    codebook_usage: float = Field(0.05, ge=0, le=1)
    latency_ratio: float = Field(1.5, gt=0)
    size_ratio: float = Field(1.5, gt=0)
    first_auroc: float = Field(0.5, ge=0, le=1)
    insufficient_promotes: bool = False
    approval: bool = False
    verify_auroc: float = Field(0.01, ge=0, le=1)
    verify_score: float = Field(0.1, ge=0)


class Landing(_Section):
    url: str = ""
    max_bytes: int = Field(64 * 2**20, ge=1)
    max_objects: int = Field(1000, ge=1)
    retries: int = Field(4, ge=0)
    poll: float = Field(15.0, gt=0)


class Retrain(_Section):
    min_new: int = Field(20, ge=1)
    max_age_days: float = Field(30.0, gt=0)
    on_drift: bool = True
    gate_share: float = Field(0.2, ge=0, lt=1)
    screen_margin: float = Field(0.25, ge=0)
    duplicate: float = Field(0.993, gt=0, le=1)


class Drift(_Section):
    min_images: int = Field(30, ge=10)
    rate: float = Field(0.02, gt=0, lt=1)
    draws: int = Field(1000, ge=100)


class Compute(_Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "float32"] = "auto"
    parallel: int | _Auto = "auto"
    threads: int | _Auto = "auto"
    cache_gb: float = Field(4.0, ge=0)


class Flow(_Section):
    retries: int = Field(2, ge=0)
    push: bool = True
    git_remote: str = Field("", pattern=_REMOTE)  # the name of a git remote
    train_pool: str = ""
    tracking_uri: str = "auto"


_Port = Annotated[int, Field(ge=1, le=65535)]
Bucket = Annotated[str, Field(pattern=_BUCKET)]


Pool = Annotated[str, Field(pattern=_POOL)]


class Services(_Section):
    postgres_port: _Port = 5433
    s3_port: _Port = 8333
    mlflow_port: _Port = 5000
    prefect_port: _Port = 4200
    dvc_bucket: Bucket = "dvc"
    mlflow_bucket: Bucket = "mlflow"
    landing_bucket: Bucket = "landing"
    work_pool: Pool = "pvqae"
    train_pool: Pool = "pvqae-train"
    worker_limit: int = Field(4, ge=1)
    timeout: float = Field(120.0, gt=0)


class Service(_Section):
    host: str = "127.0.0.1"
    port: _Port = 8080
    max_bytes: int = Field(32 * 2**20, ge=1)
    max_batch: int = Field(16, ge=1)
    rate: float = Field(50.0, ge=0)
    burst: int = Field(100, ge=1)
    queue: int = Field(16, ge=1)
    timeout: float = Field(30.0, gt=0)
    poll: float = Field(15.0, gt=0)


Event = Literal["promoted", "refused", "held", "rolled_back", "drifted", "failed"]
# The name of an environment variable: secrets are never in params.yaml, which is in git and in MLflow.
_Variable = Annotated[str, Field(pattern=_NAME)]
_Address = Annotated[str, Field(pattern=_MAIL)]
_THIS_MACHINE = ("localhost", "127.0.0.1")


class Notify(_Section):
    events: tuple[Event, ...] = get_args(Event)
    # No user and password in it; an address that is a secret itself is in a variable.
    webhook: str = Field("", pattern=_HOOK)
    webhook_secret: _Variable = ""
    mail: tuple[_Address, ...] = ()
    sender: str = Field("", pattern=_SENDER)
    smtp: str = Field("", pattern=_SERVER)
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str = ""
    smtp_password: _Variable = ""
    blocks: tuple[Annotated[str, Field(pattern=_BLOCK)], ...] = ()
    tries: int = Field(3, ge=1, le=10)
    timeout: float = Field(10.0, gt=0, le=60)

    @model_validator(mode="after")
    def _fit(self) -> Self:
        """Refuse mail that has no way, and a password that would go over a network in the clear."""
        if self.mail and not (self.smtp and self.sender):
            raise ValueError("mail needs a server, smtp: HOST:PORT, and a sender")
        if bool(self.smtp_user) != bool(self.smtp_password):
            raise ValueError("smtp_user and smtp_password, the name of a variable, go together")
        if self.smtp_user and self.smtp_security == "none" and self.smtp.partition(":")[0] not in _THIS_MACHINE:
            raise ValueError("smtp_security none would send the password in the clear; choose starttls or tls")
        return self


class Params(_Section):
    seed: int = Field(0, ge=0, lt=2**63)
    data: Data = Data()
    image: Image = Image()
    model: Model = Model()
    memory: Memory = Memory()
    train: Train = Train()
    prior: Prior = Prior()
    score: Score = Score()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    landing: Landing = Landing()
    retrain: Retrain = Retrain()
    drift: Drift = Drift()
    compute: Compute = Compute()
    flow: Flow = Flow()
    services: Services = Services()
    service: Service = Service()
    notify: Notify = Notify()


def known_keys(model: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """Return every dotted key of `Params`, e.g. `train.steps`."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys += known_keys(cast(type[BaseModel], kind), f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return keys


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "string_pattern_mismatch" and (form := _FORMS.get(error["ctx"]["pattern"])):
        return f"{key}: expected {form}, found {reprlib.repr(error['input'])}"
    if error["type"] != "extra_forbidden":
        quotes = "; a text that reads as something else needs quotes" * (error["type"] == "string_type")
        return f"{key}: {error['msg']}, found {reprlib.repr(error['input'])}{quotes}"  # short, whatever was nested
    if key in _RETIRED:
        return f"{key}: {_RETIRED[key][1]}"
    near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.4)
    return f"{key}: unknown key" + (f", did you mean {near[0]}?" if near else "")


def parse(values: dict[str, Any], where: str = "params") -> Params:
    """Return checked `Params` from nested dicts. Raises `ConfigError` that lists every wrong key of `where`."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cast(dict[str, Any], item)) for item in error.errors()]
        raise ConfigError(f"{where} is not valid:\n  " + "\n  ".join(lines)) from None


def _drop_retired(values: dict[str, Any]) -> None:
    for key, (default, _) in _RETIRED.items():
        section, _, name = key.partition(".")
        own = values.get(section)
        if isinstance(own, dict) and own.get(name) == default:
            del own[name]


def _merge(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section; give --set {parent}=VALUE")
        values = child
    values[last] = value


def _explain_misread(params: Params, place: Place, theirs: Any) -> str:
    """Return "" where both come to the same value, as for 2e-3: a text to PyYAML, a number once it is checked."""
    value: Any = params
    for part in place:
        value = getattr(value, part) if isinstance(part, str) else value[part]
    if value == theirs and isinstance(value, bool) == isinstance(theirs, bool):
        return ""
    ways = [value] + [theirs] * (type(theirs) is type(value))
    written = " or ".join(plain_yaml.dump([way]).removeprefix("- ").strip() for way in ways)
    key = ".".join(map(str, place))
    return f"{key}: read as {value!r} here (YAML 1.1), as {theirs!r} by DVC (YAML 1.2); write {written}"


def _kind(key: str) -> Any:
    """Return the type of what a dotted key holds, None for an unknown one."""
    kind: Any = Params
    for part in key.split("."):
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
        kind = fields[part].annotation if part in fields else None
    return kind


def _override(values: dict[str, Any], misread: Mapping[Place, Any], item: str) -> dict[Place, Any]:
    """Put `key=value` into `values`; returns what DVC would misread of them then."""
    key, equals, text = (part.strip() for part in item.partition("="))
    if not equals:
        raise ConfigError(f"--set {item}: expected key=value, e.g. train.steps=100")
    place: Place = tuple(key.split("."))
    kept = {other: theirs for other, theirs in misread.items() if other[: len(place)] != place}
    kind = _kind(key)
    try:
        if kind in (str, tuple[str, ...]):  # texts as they were typed
            typed = kind is str and not text.startswith(("'", '"'))
            _merge(values, key, text if typed else plain_yaml.parse(text, as_texts=True))
            return kept
        value = plain_yaml.parse(text)
        _merge(values, key, value)
        return kept | {(*place, *below): theirs for below, theirs in plain_yaml.misread(text, value).items()}
    except ValueError as error:
        raise ConfigError(f"--set {item}: the value is not YAML: {error}") from None


def load(path: Path | str = "params.yaml", overrides: tuple[str, ...] = ()) -> Params:
    """Read a params file and apply `key=value` overrides: values are YAML, those of texts may do without quotes.

    Raises `ConfigError` when the file is missing, is not YAML, a key or value is not known, or DVC, which reads the
    file too, takes a value for another one.
    """
    values, misread = _read(Path(path))
    _drop_retired(values)
    for item in overrides:
        misread = _override(values, misread, item)
    where = str(path) + (f" with {', '.join(overrides)}" if overrides else "")
    params = parse(values, where)
    if lines := [line for place, theirs in misread.items() if (line := _explain_misread(params, place, theirs))]:
        raise ConfigError(f"{where} is not valid:\n  " + "\n  ".join(lines))
    return params


def params_here(overrides: tuple[str, ...] = (), file: Path = Path("params.yaml")) -> Params:
    """Return the params of this folder; the defaults if it has none."""
    return load(file if file.is_file() else os.devnull, overrides)


def usable(path: Path) -> tuple[Params, str]:
    """Return the params with the default of each value that is not valid, and what is wrong, "" if nothing is: for what
    shows or stops things, which an error in the file must not keep from it.
    """
    try:
        return load(path), ""
    except ConfigError as error:
        wrong = str(error)
    try:
        values, _ = _read(path)
    except ConfigError:
        return Params(), wrong
    while True:
        try:
            return Params.model_validate(values), wrong
        except ValidationError as error:
            for item in error.errors():
                _drop(values, item["loc"])


def _drop(values: dict[str, Any], place: tuple[int | str, ...]) -> None:
    """Remove the section or key that an error is about; all where it names none."""
    section, *rest = place or ("",)
    inner = values.get(str(section))
    if rest and isinstance(inner, dict) and rest[0] in inner:
        del inner[rest[0]]
    elif section in values:
        del values[str(section)]
    else:
        values.clear()


def _read(path: Path) -> tuple[dict[str, Any], dict[Place, Any]]:
    """Return the content of a params file, not checked, and what DVC reads where it differs. Raises `ConfigError`."""
    try:
        text = path.read_text("utf-8")
        read = plain_yaml.parse(text)
        values, misread = read or {}, plain_yaml.misread(text, read)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; run from the project's root or name the file") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(values).__name__}")
    return values, misread


def dump(params: Params) -> str:
    """Return the params as YAML text that `load` reads back to an equal value."""
    return plain_yaml.dump(params.model_dump(mode="json"))
