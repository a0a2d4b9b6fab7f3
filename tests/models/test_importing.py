"""Weights that were not made here."""

import argparse
import os
import re
import subprocess
import sys
import urllib.request
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.conftest import same
from torch import nn

from distillery.config.schema.recipe import Preprocess, Statistics
from distillery.errors import UserError
from distillery.models import create_model
from distillery.models.importing import classifier_modules, import_weights
from distillery.models.weights import save_weights

# --- files of others ---------------------------------------------------------------------------------------------


def prefixed(state, *prefixes):
    return {"".join(prefixes) + name: value for name, value in state.items()}


def renamed(state, old, new):
    return {name.replace(old, new): value for name, value in state.items()}


def without_counters(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


LAYOUTS = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "parameters": lambda state: {name: nn.Parameter(value, requires_grad=False) for name, value in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_prec1": torch.tensor(93.4)},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "net": lambda state: {"net": state, "acc": 93.4},
    "model_state": lambda state: {"model_state": state},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "averaged beside raw": lambda state: {"state_dict": {n: v * 0 for n, v in state.items()}, "state_dict_ema": state},
    "options and numpy scalars": lambda state: {
        "model": state,
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(93.4),
        "step": np.int64(3),
    },
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled inside DDP": lambda state: prefixed(state, "module.", "_orig_mod."),
    "Lightning": lambda state: {"state_dict": prefixed(state, "model.")},
    "averaged by torch": lambda state: {"n_averaged": torch.tensor(5), **prefixed(state, "module.")},
    "linear": lambda state: {"state_dict": renamed(state, "fc.", "linear.")},
    "without counters": lambda state: without_counters(state),
    "with counted operations": lambda state: {**state, "conv1.total_ops": torch.zeros(1)},
    "half precision": lambda state: state,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_other_projects_are_understood(layout, donor, network, tmp_path):
    state = donor.state_dict()
    if layout == "half precision":
        for value in state.values():
            value.copy_(value.half())
        torch.save({name: value.half() for name, value in state.items()}, tmp_path / "w.pth")
    else:
        torch.save(LAYOUTS[layout](state), tmp_path / "w.pth")
    if layout in ("without counters", "averaged by torch"):
        network.load_state_dict({n: v for n, v in state.items() if n.endswith("num_batches_tracked")}, strict=False)
    assert import_weights(network, str(tmp_path / "w.pth"), "cifar_resnet8") is None
    assert same(donor, network)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".tar", ".bin"])
def test_files_of_any_torch_release_and_name_are_read(suffix, donor, network, tmp_path):
    path = tmp_path / f"w{suffix}"
    torch.save({"state_dict": donor.state_dict()}, path, _use_new_zipfile_serialization=suffix != ".th")
    import_weights(network, str(path), "cifar_resnet8")
    assert same(donor, network)


def test_safetensors_of_others_are_read(donor, network, tmp_path):
    save_file(prefixed(renamed(donor.state_dict(), "fc.", "classifier."), "module."), tmp_path / "w.safetensors")
    import_weights(network, str(tmp_path / "w.safetensors"), "cifar_resnet8")
    assert same(donor, network)


def test_shortcuts_are_found_under_either_name(tmp_path):
    donor, network = create_model("torchvision:resnet18", 4), create_model("torchvision:resnet18", 4)
    torch.save(renamed(donor.state_dict(), "downsample", "shortcut"), tmp_path / "w.pth")
    import_weights(network, str(tmp_path / "w.pth"), "torchvision:resnet18")
    assert same(donor, network)


def test_a_network_whose_own_names_begin_like_a_wrapper_is_left_alone(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 2)

    torch.save(Wrapped().state_dict(), tmp_path / "w.pth")
    import_weights(Wrapped(), str(tmp_path / "w.pth"), "wrapped")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["EVIL_FILE"]),))


def test_code_in_a_file_is_not_run(donor, network, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "touched"))
    torch.save({"state_dict": donor.state_dict(), "extra": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: cannot be read safely: .* save its state_dict\(\) alone$"):
        import_weights(network, str(tmp_path / "w.pth"), "cifar_resnet8")
    assert not (tmp_path / "touched").exists()


def corrupt(state):
    state["layer1.0.conv1.weight"][0] = float("nan")
    return state


FAULTS = {
    "another depth": (
        lambda _: create_model("cifar_resnet14", 10).state_dict(),
        r"weights of another network: the file also has layer1\.1\.conv1\.weight, .* and \d+ more$",
    ),
    "half of it": (
        lambda state: {name: value for name, value in state.items() if "layer2" not in name},
        r"weights of another network: the file lacks layer2\.0\.conv1\.weight, .* and \d+ more$",
    ),
    "another classifier": (
        lambda _: create_model("cifar_resnet8", 100).state_dict(),
        r"weights for 100 classes \(fc\.weight\), but the data set has 10; to train from them .* new_classifier: true$",
    ),
    "another width": (
        lambda state: {**state, "conv1.weight": torch.zeros(8, 3, 5, 5)},
        r"weights of another network: conv1\.weight \(8, 3, 5, 5\) instead of \(16, 3, 3, 3\)$",
    ),
    "not finite": (corrupt, r"weights that are NaN or infinite: layer1\.0\.conv1\.weight$"),
    "no weights": (lambda _: {"epoch": 3, "lr": 0.1}, r"holds no weights, .*; its keys: epoch, lr$"),
    "a list": (lambda state: list(state.values()), r"holds no weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line_and_changes_nothing(fault, donor, network, tmp_path):
    make, line = FAULTS[fault]
    path = tmp_path / "w.pth"
    torch.save(make(donor.state_dict()), path)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match=line) as caught:
        import_weights(network, str(path), "cifar_resnet8")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"version https://git-lfs", b"PK\x03\x04 cut off"])
def test_files_that_are_no_weights_are_one_line(content, network, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth: cannot be read") as caught:
        import_weights(network, str(tmp_path / "w.pth"), "cifar_resnet8")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_one_line(donor, network, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"w\.pth: cannot be read"):
        import_weights(network, str(tmp_path / "w.pth"), "cifar_resnet8")


def test_a_file_that_is_not_there_is_one_line(network, tmp_path):
    with pytest.raises(UserError, match=r"w\.pth: no such file; expected a file of weights"):
        import_weights(network, str(tmp_path / "w.pth"), "cifar_resnet8")
    with pytest.raises(UserError, match=r": is no file; expected a file of weights"):
        import_weights(network, str(tmp_path), "cifar_resnet8")


# --- published weights -------------------------------------------------------------------------------------------


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


def test_published_weights_never_get_a_random_classifier(torchvision_cache):
    torchvision_cache("resnet18", "IMAGENET1K_V1", create_model("torchvision:resnet18", 1000).state_dict())
    with pytest.raises(UserError, match=r"IMAGENET1K_V1: weights for 1000 classes .* the data set has 10; "):
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
from distillery.models.importing import import_weights
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
    """The hub's client is told to stay offline, which spares the test its minute of retries."""
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
    assert "timm:a1_in1k: weights for 1000 classes (fc.weight), but the data set has 10" in other


def test_the_saved_file_is_plain_safetensors(donor, tmp_path):
    save_weights(donor, tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == donor.state_dict().keys()


# --- a new last layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cifar_resnet8", ("fc",)),
        ("resnet18", ("fc",)),
        ("torchvision:squeezenet1_1", ("classifier.1",)),
        ("torchvision:mobilenet_v2", ("classifier.1",)),
        ("torchvision:vit_b_32", ("heads.head",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("resnetv2_18", ("head.fc",)),
    ],
)
def test_the_last_layer_is_found(name, layers):
    with torch.device("meta"):
        assert classifier_modules(create_model(name, 7)) == layers


def test_a_new_last_layer_keeps_its_draw_and_all_else_is_imported(donor, tmp_path):
    save_weights(donor, tmp_path / "w.safetensors")
    torch.manual_seed(5)
    network = create_model("cifar_resnet8", 7)
    before = network.fc.weight.clone()
    import_weights(network, str(tmp_path / "w.safetensors"), "cifar_resnet8", new_classifier=True)
    assert torch.equal(network.fc.weight, before)
    expected = donor.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items() if "fc." not in key)


def test_other_missing_weights_are_still_told(donor, tmp_path):
    state = {name: value for name, value in donor.state_dict().items() if name != "conv1.weight"}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: weights of another network: the file lacks conv1\.weight$"):
        import_weights(create_model("cifar_resnet8", 7), str(tmp_path / "w.pth"), "cifar_resnet8", new_classifier=True)


# --- what only fits in another form ------------------------------------------------------------------------------


def test_a_linear_layer_fits_where_the_network_has_a_convolution(tmp_path):
    network = create_model("cifar_wrn_16_1", 10)
    state = network.state_dict()
    torch.save({**state, "head.fc.weight": state["head.fc.weight"].flatten(1) + 1}, tmp_path / "w.pth")
    before = state["head.fc.weight"].clone()
    import_weights(network, str(tmp_path / "w.pth"), "cifar_wrn_16_1")
    assert torch.equal(network.head.fc.weight, before + 1)


def test_weights_that_the_original_never_uses_are_passed_over(tmp_path):
    state = create_model("cifar_efficientnet_b0", 10).state_dict()
    torch.save({**state, "layers.0.conv1.weight": torch.zeros(32, 32, 1, 1)}, tmp_path / "w.pth")
    import_weights(create_model("cifar_efficientnet_b0", 10), str(tmp_path / "w.pth"), "cifar_efficientnet_b0")


def test_timms_own_namings_of_originals_are_used(tmp_path):
    """MIIL's file of TResNet-L V2: the bare names of its first version, and signs of in-place batch norms."""
    with torch.device("meta"):
        own = create_model("tresnet_v2_l", 3).state_dict()
    torch.manual_seed(0)
    state = {name: torch.randn(value.shape).to(value.dtype) for name, value in own.items()}
    original = {}
    for name, value in state.items():
        name = re.sub(r"(conv\d+)\.conv\.", r"\1.0.", name)
        name = re.sub(r"(conv\d+)\.bn\.", r"\1.1.", name)
        name = re.sub(r"(downsample\.\d+)\.conv\.", r"\1.0.", name)
        name = re.sub(r"(downsample\.\d+)\.bn\.", r"\1.1.", name)
        original[f"module.{name}"] = value
    torch.save({"state_dict": original}, tmp_path / "tresnet.pth")
    network = create_model("tresnet_v2_l", 3)
    import_weights(network, str(tmp_path / "tresnet.pth"), "tresnet_v2_l")
    read = network.state_dict()
    assert torch.equal(read["body.conv1.conv.weight"], state["body.conv1.conv.weight"])
    assert torch.allclose(read["body.conv1.bn.weight"], state["body.conv1.bn.weight"].abs() + 1e-5)


def test_published_weights_of_torchvision_fit_mgds_students(torchvision_cache):
    donor = create_model("torchvision:shufflenet_v2_x1_0", 1000)
    torchvision_cache("shufflenet_v2_x1_0", "IMAGENET1K_V1", donor.state_dict())
    network = create_model("mgd_shufflenet_v2", 1000, inplace_relu_compat=True)
    arguments = {"inplace_relu_compat": True}
    preprocess = import_weights(network, "torchvision:IMAGENET1K_V1", "mgd_shufflenet_v2", arguments)
    assert preprocess is not None
    assert preprocess.resize == 256
    assert same(donor, network)
