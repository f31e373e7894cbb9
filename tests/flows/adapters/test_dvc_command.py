"""DVC's lock file by libyaml: it means the same to DVC, both ways, and appears whole."""

import io
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import zc.lockfile
from dvc.utils.serialize import _yaml as theirs
from hypothesis import example, given
from hypothesis import strategies as st

from flows.adapters import dvc_command
from flows.adapters.versioning import COMMAND

# Texts that one version of YAML or both take for something else.
DOUBTFUL = (
    *(
        "12e45",
        "off",
        "on",
        "yes",
        "no",
        "y",
        "0123",
        "08",
        "0o17",
        "0x1f",
        "1:30",
        "1_000",
        "1e5",
        ".5",
        "nan",
        ".nan",
    ),
    *(
        "null",
        "~",
        "",
        "true",
        "True",
        "2026-11-30",
        "<<",
        "=",
        "a: b",
        "# x",
        "é",
        "x\ny",
        "- a",
        "!x",
        "&a",
        "*b",
        "@",
    ),
    *(
        "-",
        "+",
        "_1",
        "0b1",
        "007",
        "+1",
        ".inf",
        "%a",
        "? a",
        "[a",
        "'",
        '"',
        " a",
        "a ",
        "\t",
        "00000000000000000000e1",
    ),
)
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8)  # no path has others
PLAIN = st.one_of(st.sampled_from(DOUBTFUL), TEXTS, st.integers(), st.floats(allow_nan=False), st.booleans())
VALUES = st.recursive(
    PLAIN | st.none(), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("ab1"), v, max_size=3)
)


def by_dvc(content: dict[str, Any]) -> str:
    stream = io.StringIO()
    theirs._dump(content, stream)
    return stream.getvalue()


@given(VALUES)
@example(list(DOUBTFUL))
def test_each_reads_what_the_other_wrote(value: Any) -> None:
    content = {"schema": "2.0", "stages": {"a": {"params": {"key": value}}}}
    for text in (dvc_command.text_of(content), by_dvc(content)):
        for found in (theirs.parse_yaml(text, "x"), dvc_command.parse(text)):
            assert repr(found) == repr(content)


def test_a_lock_of_dvc_is_written_as_dvc_writes_it(tmp_path: Path) -> None:
    outs = [{"path": "models/demo", "hash": "md5", "md5": "12e45", "size": 3}]
    stage = OrderedDict(
        cmd="pvqae train brick", params={"params.yaml": {"train.lr": 0.002, "data.name": "demo"}}, outs=outs
    )
    content = {"schema": "2.0", "stages": {"train@brick": stage}}
    assert dvc_command.text_of(content) == by_dvc(content)


def test_a_change_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "dvc.lock"
    with dvc_command._modified(str(file)) as content:
        content["schema"] = "2.0"
    change = dvc_command._modified(str(file))
    change.__enter__()["schema"] = "3.0"
    assert not change.__exit__(RuntimeError, RuntimeError(), None)
    assert (file.read_text("utf-8"), list(tmp_path.iterdir())) == ("schema: '2.0'\n", [file])


def test_the_command_is_dvcs_own_and_what_it_locks_is_unchanged_to_dvc(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ours, plain = ("-P", str(COMMAND)), ("-m", "dvc")
    run(*ours, "init", "--no-scm", "--quiet")
    (tmp_path / "params.yaml").write_text("lr: 1.0e-05\nname: 'off'\n")
    stages = "stages:\n  a:\n    cmd: echo a > a\n    params: [lr, name]\n    outs: [a]\n"
    (tmp_path / "dvc.yaml").write_text(stages + "  b:\n    cmd: cp a b\n    deps: [a]\n    outs: [b]\n")
    assert "Running stage 'a'" in run(*ours, "repro")
    written = (tmp_path / "dvc.lock").read_text()
    for command in (plain, ours):
        assert "up to date" in run(*command, "status")
        assert "up to date" in run(*command, "repro")
        assert (tmp_path / "dvc.lock").read_text() == written
    (tmp_path / "dvc.lock").unlink()
    run(*plain, "repro")
    assert dvc_command.parse((tmp_path / "dvc.lock").read_text()) == dvc_command.parse(written)


@pytest.mark.parametrize("text", ["schema: '2.0\nstages: [", "- a list", "only a text"])
def test_a_damaged_lock_is_told_in_dvcs_own_words(tmp_path: Path, text: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo a\n")
    (tmp_path / "dvc.lock").write_text(text)
    done = subprocess.run([sys.executable, "-P", str(COMMAND), "status"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert "dvc.lock" in done.stderr


def test_commands_side_by_side_wait_for_each_other_and_not_for_half_a_second(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "a").write_text("a")
    held = zc.lockfile.LockFile(str(tmp_path / ".dvc" / "tmp" / "lock"))
    command = [sys.executable, "-P", str(COMMAND), "add", "-q", "a"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as asked:
        time.sleep(4)  # DVC gives up after three seconds
        assert asked.poll() is None
        held.close()
        assert asked.communicate(timeout=20)[1] == ""
    assert (tmp_path / "a.dvc").exists()
