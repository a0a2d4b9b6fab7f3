"""What timm and torchvision publish, and how its images are prepared."""

import os
import subprocess
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from tests.models.conftest import same

from distillery.errors import UserError
from distillery.experiment.schema.block import Statistics
from distillery.experiment.schema.recipe import Preprocess
from distillery.models import create_model
from distillery.models.pretrained.load import import_weights
from distillery.models.weights import save_weights


@pytest.mark.parametrize(
    ("name", "source", "line"),
    [
        ("resnet18", "torchvision:IMAGENET1K", r"torchvision has no 'IMAGENET1K' for resnet18; .*'IMAGENET1K_V1'"),
        ("resnet18", "torchvision:DEFAULT", r"torchvision has no 'DEFAULT' for resnet18; .*valid: IMAGENET1K_V1"),
        ("resnet18", "timm:a1_in2k", r"timm has no 'a1_in2k' for resnet18; did you mean 'a1_in1k'"),
        ("cifar_resnet8", "timm:a1_in1k", r"timm has no 'a1_in1k' for cifar_resnet8; valid: none"),
        ("cifar_resnet8", "torchvision:V1", r"torchvision has no 'V1' for cifar_resnet8; valid: none"),
    ],
)
def test_unknown_tags_are_one_line(name, source, line):
    with pytest.raises(UserError, match=line):
        import_weights(create_model(name, 10), source, name)


@pytest.fixture
def torchvision_cache(monkeypatch, tmp_path):
    """Put files where torchvision looks before it downloads; a real download is refused by the proxy."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    # It is made once a process, with the proxies of that time.
    monkeypatch.setattr(urllib.request, "_opener", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def put(name, tag, state):
        from torchvision.models import get_model_weights

        torch.save(state, folder / get_model_weights(name)[tag].url.rpartition("/")[2])

    return put


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:resnet18", "resnet18"])
def test_torchvisions_weights_come_with_their_preparation(name, torchvision_cache):
    donor, network = create_model("torchvision:resnet18", 1000), create_model(name, 1000)
    torchvision_cache("resnet18", "IMAGENET1K_V1", donor.state_dict())
    assert import_weights(network, "torchvision:IMAGENET1K_V1", name) == Preprocess(
        size=224,
        resize=256,
        interpolation="bilinear",
        normalize=Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    )
    assert same(donor, network)


@pytest.mark.slow
def test_published_weights_never_get_a_random_classifier(torchvision_cache):
    torchvision_cache("resnet18", "IMAGENET1K_V1", create_model("torchvision:resnet18", 1000).state_dict())
    with pytest.raises(UserError, match=r"IMAGENET1K_V1: weights for 1000 classes .* and not for 10; "):
        import_weights(create_model("resnet18", 10), "torchvision:IMAGENET1K_V1", "resnet18")


def test_a_refused_download_says_what_to_fetch(torchvision_cache, network):
    line = (
        r"weights: torchvision:IMAGENET1K_V1 could not be downloaded \(.*refused.*\); fetch http\S+/resnet18-\w+\.pth "
        r".* write weights: PATH_OF_THE_FILE and preprocess: \{size: 224, resize: 256, "
        r"normalize: \{mean: \[0\.485, 0\.456, 0\.406\], std: \[0\.229, 0\.224, 0\.225\]\}\}$"
    )
    with pytest.raises(UserError, match=line):
        import_weights(create_model("resnet18", 10), "torchvision:IMAGENET1K_V1", "resnet18")


TIMM_SCRIPT = """
import sys
from safetensors.torch import load_file
from distillery.models import create_model
from distillery.models.pretrained.load import import_weights
network = create_model("resnet18", int(sys.argv[1]))
try:
    print(import_weights(network, "timm:a1_in1k", "resnet18").model_dump())
except ValueError as error:
    print(error)
else:
    state = network.state_dict()
    assert all((value == state[name]).all() for name, value in load_file(sys.argv[2]).items())
"""


def run_timm_script(*arguments, **environment):
    """In a process of its own, because the hub's client reads its environment when it is imported."""
    command = [sys.executable, "-c", TIMM_SCRIPT, *map(str, arguments)]
    environment = {"HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"} | environment
    return subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_timms_refused_download_says_what_to_fetch(tmp_path):
    """The hub's client is set to stay offline, which spares the test its minute of retries."""
    said = run_timm_script(1000, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "fetch model.safetensors of timm/resnet18.a1_in1k on a machine with network access" in said
    assert "preprocess: {size: 224, resize: 235, interpolation: bicubic, normalize: {mean: [0.485" in said


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as its client asks for to fetch one file."""

    file: bytes

    def do_HEAD(self):
        found = self.path == "/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
        self.send_response(200 if found else 404)
        for name, value in {"ETag": '"1"', "X-Repo-Commit": "0" * 40, "Content-Length": str(len(self.file))}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.file)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_timms_weights_come_with_their_preparation_and_their_classes(tmp_path):
    save_weights(create_model("resnet18", 1000), tmp_path / "model.safetensors")
    handler = type("Handler", (Hub,), {"file": (tmp_path / "model.safetensors").read_bytes()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        where = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        fitting = run_timm_script(1000, tmp_path / "model.safetensors", **where)
        other = run_timm_script(10, tmp_path / "model.safetensors", **where)
        server.shutdown()
    assert fitting.startswith("{'size': 224, 'resize': 235, 'interpolation': 'bicubic', 'normalize': {'mean': (0.485")
    assert "timm:a1_in1k: weights for 1000 classes (fc.weight), and not for 10" in other


def test_published_weights_of_torchvision_fit_mgds_students(torchvision_cache):
    donor = create_model("torchvision:shufflenet_v2_x1_0", 1000)
    torchvision_cache("shufflenet_v2_x1_0", "IMAGENET1K_V1", donor.state_dict())
    network = create_model("mgd_shufflenet_v2", 1000, inplace_relu_compat=True)
    arguments = {"inplace_relu_compat": True}
    preprocess = import_weights(network, "torchvision:IMAGENET1K_V1", "mgd_shufflenet_v2", arguments)
    assert preprocess is not None
    assert preprocess.resize == 256
    assert same(donor, network)
