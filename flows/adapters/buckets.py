"""Files and whole folders to and from S3 buckets, with the addresses and keys that boto3 finds."""

from pathlib import Path
from urllib.parse import urlsplit

from flows.adapters.landing import client, explained
from pvqae.core.errors import ConfigError
from pvqae.core.files import whole_file

SCHEME = "s3://"


def put(file: Path, url: str) -> None:
    """Upload a file as the object `url`, which appears whole or not at all. Raises `LandingError`."""
    bucket, key = _object(url)
    with explained(url):
        client(url).upload_file(str(file), bucket, key)


def get(url: str, file: Path) -> None:
    """Download the object `url` to `file`, which appears whole or not at all. Raises `LandingError`."""
    bucket, key = _object(url)
    with explained(url), whole_file(file) as part:
        client(url).download_file(bucket, key, str(part))


def put_folder(folder: Path, bucket: str) -> int:
    """Upload every file of a folder under its path; return how many. Raises `LandingError`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    server = client(bucket)
    for path in files:
        with explained(f"{SCHEME}{bucket}/{path.relative_to(folder).as_posix()}"):
            server.upload_file(str(path), bucket, path.relative_to(folder).as_posix())
    return len(files)


def get_folder(bucket: str, folder: Path) -> int:
    """Download every object of a bucket below `folder`; return how many. Raises `LandingError`."""
    server, count = client(bucket), 0
    with explained(f"{SCHEME}{bucket}"):
        for page in server.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for row in page.get("Contents", ()):
                key, inside = str(row["Key"]), folder.resolve()
                target = (inside / key).resolve()
                if key.endswith("/") or not target.is_relative_to(inside):
                    continue  # folders' markers, and what no artifact of MLflow is called
                target.parent.mkdir(parents=True, exist_ok=True)
                server.download_file(bucket, key, str(target))
                count += 1
    return count


def _object(url: str) -> tuple[str, str]:
    found = urlsplit(url)
    if not url.startswith(SCHEME) or not found.netloc or not found.path.strip("/"):
        raise ConfigError(f"{url}: expected {SCHEME}BUCKET/NAME; name the object")
    return found.netloc, found.path.strip("/")
