"""Where the services of a project keep their files, the secrets that they share, and the environment of clients."""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.adapters.dvc_files import write_private
from pvqae.core.config import Services
from pvqae.core.errors import PvqaeError

HOST = "127.0.0.1"
REGION = "us-east-1"  # the S3 server takes any


class ServiceError(PvqaeError):
    """A service does not start, does not answer or does not end; the text names it and what repairs it."""


@dataclass(frozen=True)
class Secrets:
    """Made at the first start and kept in secrets.json (mode 0600); never in params, logs, tags or command lines."""

    postgres_password: str
    s3_key_id: str
    s3_secret: str
    s3_signing: str  # between the parts of the S3 server


@dataclass(frozen=True)
class ServiceFiles:
    """All files of the services of the project at `root`, and the addresses and variables that clients need."""

    root: Path
    settings: Services

    @property
    def home(self) -> Path:
        return self.root / ".pvqae" / "services"

    @property
    def env_file(self) -> Path:
        """What `flows.core.environment` reads; exists while the services run. No secret in it, only paths of such."""
        return self.home / "env.json"

    @property
    def settings_file(self) -> Path:
        """The ports and names that the running services were started with; params.yaml may have changed since."""
        return self.home / "settings.json"

    @property
    def aws_file(self) -> Path:
        """Key of the S3 server, in the form that every AWS client reads."""
        return self.home / "aws-credentials"

    @property
    def aws_config(self) -> Path:
        """Settings of AWS clients, none: the user's addressing style and roles are those of another server."""
        return self.home / "aws-config"

    @property
    def pgpass_file(self) -> Path:
        """Password of PostgreSQL, in the form that every client of it reads."""
        return self.home / "pgpass"

    @property
    def s3_file(self) -> Path:
        """Whom the S3 server lets in."""
        return self.home / "s3.json"

    @property
    def former_remote(self) -> Path:
        """The default remote of .dvc/config.local before the services took its files."""
        return self.home / "former-remote"

    def log(self, name: str) -> Path:
        """Return the file of a service's output."""
        return self.home / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        """Return the file with pid and start time of a service's first process."""
        return self.home / f"{name}.pid"

    def data(self, name: str) -> Path:
        """Return the folder in which a service keeps its data."""
        return self.home / "data" / name

    @property
    def prefect_api(self) -> str:
        """The address of Prefect's API."""
        return f"http://{HOST}:{self.settings.prefect_port}/api"

    @property
    def mlflow(self) -> str:
        """The address of MLflow."""
        return f"http://{HOST}:{self.settings.mlflow_port}"

    @property
    def s3_endpoint(self) -> str:
        """The address of the S3 server."""
        return f"http://{HOST}:{self.settings.s3_port}"

    @property
    def s3_env(self) -> dict[str, str]:
        """What an AWS client needs; of the key only where it is kept."""
        return {
            "AWS_ENDPOINT_URL_S3": self.s3_endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(self.aws_file),
            "AWS_CONFIG_FILE": str(self.aws_config),
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def client_env(self) -> dict[str, str]:
        """The environment in which every flow uses these services."""
        return {"PREFECT_API_URL": self.prefect_api, "MLFLOW_TRACKING_URI": self.mlflow} | self.s3_env

    def secrets(self) -> Secrets:
        """Return the secrets of this project, made at the first call; write the files that servers and clients read.

        Raises `ServiceError` when secrets.json is damaged: new secrets would lock the old data out.
        """
        file = self.home / "secrets.json"
        self.home.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            token: Callable[[int], str] = secrets.token_hex
            write_private(file, json.dumps(asdict(Secrets(token(24), token(10), token(24), token(32))), indent=1))
        try:
            found = Secrets(**json.loads(file.read_text("utf-8")))
        except (ValueError, TypeError):
            raise ServiceError(
                f"{file} is damaged; put it back from a copy, or remove {self.home} with all data of the services"
            ) from None
        self._write_client_files(found)
        return found

    def _write_client_files(self, found: Secrets) -> None:
        keys = f"[default]\naws_access_key_id = {found.s3_key_id}\naws_secret_access_key = {found.s3_secret}\n"
        write_private(self.aws_file, keys)
        write_private(self.aws_config, f"[default]\nregion = {REGION}\n")
        write_private(self.pgpass_file, f"{HOST}:*:*:pvqae:{found.postgres_password}\n")
        credentials = [{"accessKey": found.s3_key_id, "secretKey": found.s3_secret}]
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        identity = {"name": "pvqae", "credentials": credentials, "actions": actions}
        write_private(self.s3_file, json.dumps({"identities": [identity]}))
