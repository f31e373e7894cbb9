"""What a process finds around it, completed where containers and networks of companies leave gaps, so that every
library here sees the same: a name, a home, proxies that leave this machine's own servers alone, certificates, cores.

What the user has set stays. Nothing heavy is imported: this is the first that a command does.
"""

import os
import stat
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from pvqae.core import runtime
from pvqae.core.errors import PvqaeError

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python's getpass looks before it asks the system
# Each library reads this list in its own way: some know no networks, some no IPv6 in brackets.
LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
# Where requests and boto3, httpx and Python itself, and curl look for the certificates of a company.
BUNDLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
COUNTS = ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT", "PYTHON_CPU_COUNT")


def complete(environ: MutableMapping[str, str] = os.environ) -> None:
    """Fill the gaps of `environ`, for this process and all that it starts. A second time changes nothing."""
    _identity(environ)
    _proxies(environ)
    if bundle := next((environ[name] for name in BUNDLES if Path(environ.get(name) or "/").is_file()), ""):
        for name in BUNDLES:
            environ.setdefault(name, bundle)
    if region := environ.get("AWS_REGION"):
        environ.setdefault("AWS_DEFAULT_REGION", region)  # the name that boto3 reads
    if runtime.quota() < runtime.affinity():  # elsewhere libraries count for themselves
        for name in COUNTS:
            environ.setdefault(name, str(runtime.cores()))


def _entry() -> tuple[str, str] | None:
    """Name and home of the present user in the system's list; None for a number that is not in it."""
    try:
        import pwd

        found = pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        return None
    return found.pw_name, found.pw_dir


def _identity(environ: MutableMapping[str, str]) -> None:
    entry = _entry()
    if entry is None and hasattr(os, "getuid") and not any(environ.get(name) for name in NAMES):
        environ["LOGNAME"] = environ["USER"] = f"uid{os.getuid()}"
    if not environ.get("HOME") and (environ.pop("HOME", None) is not None or entry is None):
        environ["HOME"] = entry[1] if entry else str(private())


def _proxies(environ: MutableMapping[str, str]) -> None:
    """Each setting in both spellings, since some libraries read one, some the other."""
    for kind in ("http", "https", "all"):
        lower, upper = f"{kind}_proxy", f"{kind}_proxy".upper()
        value = environ.get(lower, environ.get(upper))
        if value is None and environ.get("all_proxy", environ.get("ALL_PROXY", "")).startswith("http"):
            value = environ.get("all_proxy") or environ["ALL_PROXY"]  # which boto3 and urllib do not read
        if value is not None:
            environ.setdefault(lower, value)
            environ.setdefault(upper, value)
    listed = [item.strip() for key in ("no_proxy", "NO_PROXY") for item in environ.get(key, "").split(",")]
    hosts = ["*"] if "*" in listed else list(dict.fromkeys([*filter(None, listed), *LOOPBACK]))
    environ["no_proxy"] = environ["NO_PROXY"] = ",".join(hosts)


def writable(folder: Path) -> bool:
    """Make `folder`; whether it is there and can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def private() -> Path:
    """A folder for this user alone, for what can be made again where there is no home. Raises `PvqaeError`."""
    import tempfile

    user = os.getuid() if hasattr(os, "getuid") else 0
    named = Path(tempfile.gettempdir()) / f"pvqae-{user}"
    for folder in (named, *(named.with_name(f"{named.name}-{number}") for number in range(1, 100))):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user:
            return folder  # else another's, perhaps one who has the same number in another container
    raise PvqaeError(f"{named}: expected a folder of this user, found others'; set HOME to a folder for its caches")


def caches() -> Iterator[Path]:
    """The user's folders for what can be made again: XDG_CACHE_HOME or ~/.cache, and `private` where that can't be
    written to."""
    home = os.environ.get("HOME") or (_entry() or ("", ""))[1]
    if given := os.environ.get("XDG_CACHE_HOME") or (home and str(Path(home) / ".cache")):
        yield Path(given)
    yield private()
