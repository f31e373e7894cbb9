"""Make the secrets that compose.yaml refers to; what exists stays.

Run: python infra/make_secrets.py
"""

import json
import secrets
import sys
from pathlib import Path

# Whom the S3 server lets in, and to what: SeaweedFS's actions, each for one bucket.
RIGHTS = {
    "mlflow": ("Read:mlflow", "Write:mlflow", "List:mlflow"),
    "worker": ("Read:dvc", "Write:dvc", "List:dvc", "Read:landing", "List:landing"),
    "uploader": ("Write:landing",),
}
PARTS = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")


def made() -> dict[str, str]:
    """File name → text."""
    names = ("postgres_password", "mlflow_database", "prefect_database")
    found = {name: secrets.token_hex(24) for name in names}
    identities = []
    for name, actions in RIGHTS.items():
        key_id, secret = secrets.token_hex(10), secrets.token_hex(24)
        found |= {f"{name}_s3_key_id": key_id, f"{name}_s3_secret": secret}
        credentials = [{"accessKey": key_id, "secretKey": secret}]
        identities.append({"name": name, "credentials": credentials, "actions": actions})
    found["s3_identities"] = json.dumps({"identities": identities}, indent=1)
    found["s3_signing"] = "".join(f'[{part}]\nkey = "{secrets.token_hex(32)}"\n' for part in PARTS)
    return found


def write(folder: Path) -> bool:
    """Write them whole; returns False where the folder exists already.

    The folder is for its owner only, the files are readable for all: containers run as other users, and a bind mount
    keeps the owner. Outside of a container nobody else passes the folder.
    """
    if folder.exists():
        return False
    part = folder.with_name(".secrets.part")
    part.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in made().items():
        (part / name).write_text(text, "utf-8")
        (part / name).chmod(0o444)
    part.rename(folder)
    return True


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "secrets"
    print(f"{place}: {'made' if write(place) else 'exists, nothing changed'}")
