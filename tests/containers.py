"""What containers do to a process, done by namespaces of the kernel alone."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

# A user id that no list of users names, as OpenShift and `docker --user` give.
UNNAMED = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
# Root of a namespace in which nobody else exists, as without subordinate ids.
ALONE = ("unshare", "--user", "--map-root-user")
# A namespace in which all users exist: another process maps them, as long as this one still waits.
ALL = """
import ctypes, os, sys
(left, ready), (mapped, done), this = os.pipe(), os.pipe(), os.getpid()
if not os.fork():
    os.read(left, 1)
    for name in ("uid_map", "gid_map"):
        open(f"/proc/{this}/{name}", "w").write("0 0 65536")
    os.write(done, b"1")
    os._exit(0)
if ctypes.CDLL(None).unshare(0x10000000):
    sys.exit("no user namespaces")
os.write(ready, b"1")
os.close(done)
if not os.read(mapped, 1):
    sys.exit("only root may map all users")
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Root of a container of Docker: no more than its default capabilities, no namespaces to be made.
DOCKER = (
    *(sys.executable, "-I", "-S", "-c", ALL, "sh", "-c"),
    'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set "$0" "$@"',
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot",
)
ENDLESS = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'
# Nobody may become another or make a namespace.
SHUT = (*ALONE, "sh", "-c", ENDLESS)


def contained(container: Sequence[str], command: Sequence[str]) -> list[str]:
    """`command` in `container`; skips the test where this machine allows no such one."""
    tried = subprocess.run([*container, "true"], capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode:
        pytest.skip(f"no such container can be made here: {tried.stderr.strip()}")
    return [*container, *command]
