"""A hub of models on this machine, with random weights: nothing is downloaded in tests."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import save_file

DINO = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def write_dino(folder: Path) -> Path:
    """A Hugging Face folder of a small Dinov2Model, built from its configuration."""
    from pvqae.model import foreign

    transformers = foreign.library("transformers")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**DINO)).save_pretrained(folder)
    return folder


@contextmanager
def served(root: Path) -> Iterator[str]:
    """Serve timm/resnet18.a1_in1k and plant/dino from below `root`; yields the address."""
    from pvqae.model import foreign

    torch.manual_seed(0)
    network = foreign.library("timm").create_model("resnet18", pretrained=False)
    folder = root / "timm" / "resnet18.a1_in1k" / "resolve" / "main"
    folder.mkdir(parents=True)
    save_file({key: x.contiguous() for key, x in network.state_dict().items()}, folder / "model.safetensors")
    folder = write_dino(root / "plant" / "dino" / "resolve" / "main")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.4, 0.4]}), "utf-8")
    (root / "api" / "models" / "plant").mkdir(parents=True)
    (root / "api" / "models" / "plant" / "dino").write_text('{"cardData": {"license": "apache-2.0"}}', "utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=root)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()
