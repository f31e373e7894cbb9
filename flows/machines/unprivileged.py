"""Run a program that refuses root, or a user without a name, where the present user can go:
`python -I -S unprivileged.py FOLDER COMMAND...`; FOLDER will belong to the user that runs the command.

PostgreSQL refuses the user id 0, and initdb one without a name, as containers have. Nobody else passes the folders of
a private project, though: neither those above the data nor those above PostgreSQL's own programs.

* Root becomes another user and keeps one capability, to pass and read any folder. It needs no more than what Docker
  leaves to root. The server is no weaker than the others of the project, which run as root altogether.
* Where that is not possible, the present user goes by another name in a user namespace: the kernel goes on to see who
  it really is.

Run as a file, importing nothing of the project: it changes who its process is, and is replaced by the command.
"""

import ctypes
import os
import pwd
import sys
from collections.abc import Callable
from pathlib import Path

# linux/securebits.h, prctl.h, capability.h, sched.h
_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 1 << 2
_CAP_AMBIENT, _RAISE = 47, 2
_DAC_OVERRIDE, _VERSION = 1, 0x20080522
_NEWUSER = 0x10000000
_REFUSED = (
    "PostgreSQL needs a user who is not root and has a name in /etc/passwd. Here nobody may make a user namespace, and "
    "root may not become another user (capabilities CHOWN, DAC_OVERRIDE, SETGID, SETPCAP, SETUID, which Docker gives "
    "unless told otherwise). Run the services as a user with a name: useradd --uid NUMBER pvqae"
)
_Way = Callable[[pwd.struct_passwd], None]


def _call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


def _become(user: pwd.struct_passwd) -> None:
    """Be `user`, with root's right to pass and read folders where the system knows such a thing."""
    linux = sys.platform == "linux"
    if linux:  # or a changed user id takes all capabilities, and access(2) does not count them
        _call("prctl", _SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    if linux:
        kept = (1 << _DAC_OVERRIDE,) * 3  # effective, permitted, inheritable
        _call("capset", (ctypes.c_uint32 * 2)(_VERSION), (ctypes.c_uint32 * 6)(*kept))
        _call("prctl", _CAP_AMBIENT, _RAISE, _DAC_OVERRIDE, 0, 0)


def _go_by(user: pwd.struct_passwd) -> None:
    """Have the id of `user` in a namespace in which only the present user exists."""
    own = {"uid_map": f"{user.pw_uid} {os.geteuid()} 1", "gid_map": f"{user.pw_gid} {os.getegid()} 1"}
    _call("unshare", _NEWUSER)
    for name, text in ({"setgroups": "deny"} | own).items():
        Path("/proc/self", name).write_text(text)


def _possible(way: _Way, user: pwd.struct_passwd) -> bool:
    """Try it with another process."""
    if not (child := os.fork()):
        try:
            way(user)
        except (OSError, AttributeError):  # no such call: not Linux
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _hand_over(folder: str, owner: int) -> None:
    """Make `owner` that of all in `folder`, unless it is."""
    if Path(folder).stat().st_uid != owner:
        for place, _, names in os.walk(folder, topdown=False):
            for name in (*names, ""):  # the folder last: a second try begins again
                os.chown(Path(place, name), owner, -1, follow_symlinks=False)


def _main(folder: str, *command: str) -> None:
    named = sorted((user for user in pwd.getpwall() if user.pw_uid), key=lambda user: user.pw_name != "nobody")
    ways: list[tuple[_Way, int]] = [(_become, named[0].pw_uid), (_go_by, os.geteuid())] if named else []
    for way, owner in ways if os.geteuid() == 0 else ways[1:]:
        if _possible(way, named[0]):
            _hand_over(folder, owner)
            way(named[0])
            os.execv(command[0], command)
    sys.exit(_REFUSED)


if __name__ == "__main__":
    _main(*sys.argv[1:])
