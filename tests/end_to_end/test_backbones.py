"""Every line of docs/backbones.md, from the name of a network to the gate's verdict and a rebuild, offline."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clones import PROJECT, TINY, clone
from tests.hub import served

pytestmark = pytest.mark.integration

if find_spec("timm") is None or find_spec("transformers") is None:
    pytest.skip("the extra pvqae[backbones] is not installed", allow_module_level=True)

TEXT = (PROJECT / "docs" / "backbones.md").read_text("utf-8")
LINES = re.findall(r"^    (\S.*)$", TEXT.partition("## Without the hub")[0], re.MULTILINE)
SETTINGS = [word for setting in (*TINY, "train.steps=20", "flow.push=false") for word in ("--set", setting)]
LIMITS = "gate:                     #"


def test_every_line_of_the_page(tmp_path: Path) -> None:
    project = clone(tmp_path / "clone")
    params = project.root / "params.yaml"
    text = params.read_text("utf-8")
    assert LIMITS in text
    # What the page says of a larger network: the limits are the project's.
    text = re.sub(r"latency_ratio: \S+", "latency_ratio: 100", re.sub(r"size_ratio: \S+", "size_ratio: 100", text))
    params.write_text(text, "utf-8")
    commit = [
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-C",
        str(project.root),
        "commit",
        "-qam",
        "l",
    ]
    subprocess.run(commit, check=True)

    def run(line: str, *more: str, codes: tuple[int, ...] = (0,)) -> str:
        words = [word.strip('"') for word in re.findall(r"\"[^\"]*\"|\S+", line)]
        program = {"pvqae": ["-m", "pvqae.cli.main"], "python": []}[words[0]]
        command = [sys.executable, *program, *words[1:], *more]
        done = subprocess.run(
            command, cwd=project.root, env=project.environ, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode in codes, f"{line}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    pip, refused, fetch, listed, show, train, promote = LINES
    assert pip == "pip install 'pvqae[backbones]'"  # a test can't: it is
    assert "1 champion (new)" in run("python -m flows train", *SETTINGS)
    with served(tmp_path / "hub") as hub:
        assert "--accept-licence" in run(refused, "--hub", hub, codes=(2,))
        name = run(fetch, "--hub", hub).split("backbone: ")[1].split()[0]
    assert name in run(listed)
    assert "layer4" in run(show)
    said = run(train.replace("timm:resnet18.a1_in1k@SHA256", name), *SETTINGS)
    assert "2 challenger (new)" in said
    said = run(promote, codes=(0, 1, 3))  # random weights may be worse: a verdict is what is asked for
    assert re.search(r"version 2 against 1: (pass|refused|insufficient)", said), said
    said = run("python -m flows verify pvqae-demo-brick 2")
    assert "version 2: reproduced, the rebuilt bundle has the registered hash" in said
