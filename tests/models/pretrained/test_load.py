"""Weights that were not made here."""

import argparse
import os
import tarfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.models.conftest import same
from torch import nn

from distillery.errors import UserError
from distillery.experiment.schema.block import WeightsChoice
from distillery.models import create_model
from distillery.models.pretrained.files import check_file
from distillery.models.pretrained.load import classifier_modules, import_weights, take_weights
from distillery.models.weights import save_weights


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
    "averaged under another key": lambda state: {
        "state_dict": {n: v * 0 for n, v in state.items()},
        "ema_model": state,
    },
    "averaged under a key of one's own": lambda state: {"model": {n: v * 0 for n, v in state.items()}, "my_ema": state},
    "an average without its counters beside the weights": lambda state: {
        "state_dict": state,
        "ema": {"conv1.weight": state["conv1.weight"] * 0},
    },
    "a network in a module": lambda state: prefixed(state, "net."),
    "a network in modules": lambda state: prefixed(state, "module.", "net.", "backbone."),
    "arrays of numpy": lambda state: {"model": {name: value.numpy() for name, value in state.items()}},
    "arrays of numpy alone": lambda state: {name: value.numpy() for name, value in state.items()},
    "averaged beside its settings": lambda state: {
        "model": {n: v * 0 for n, v in state.items()},
        "EMA": {"decay": 0.9, "shadow": state},
    },
    "a module's name that nobody knows": lambda state: {"state_dict": prefixed(state, "student.")},
    "arrays and paths": lambda state: {
        "model": state,
        "confusion": np.eye(3),
        "names": np.array(["a", "b"]),
        "folder": Path("runs/1"),
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
        r"weights for 100 classes \(fc\.weight\), and not for 10; .* to train from them .* new_classifier: true$",
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


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"version https://git-lfs", b"PK\x03\x04 cut off", None])
def test_files_that_are_no_weights_or_truncated_are_one_line(content, donor, network, tmp_path):
    torch.save(donor.state_dict(), path := tmp_path / "w.pth")
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(UserError, match=r"w\.pth: cannot be read") as caught:
        import_weights(network, str(path), "cifar_resnet8")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(network, tmp_path):
    with pytest.raises(UserError, match=r"w\.pth: no such file; expected a file of weights"):
        import_weights(network, str(tmp_path / "w.pth"), "cifar_resnet8")
    with pytest.raises(UserError, match=r": is no file; expected a file of weights"):
        import_weights(network, str(tmp_path), "cifar_resnet8")


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


def test_other_missing_weights_are_still_reported(donor, tmp_path):
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


# --- what was taken ----------------------------------------------------------------------------------------------


def written(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def test_what_was_taken_of_a_file_is_told(donor, network, tmp_path):
    state = donor.state_dict()
    path = written({"state_dict": state, "state_dict_ema": prefixed(state, "module."), "epoch": 3}, tmp_path)
    taken = take_weights(network, path, "cifar_resnet8")
    assert taken.averaged
    assert taken.facts["nest"] == "state_dict_ema"
    assert len(taken.facts["sha256"]) == 64
    assert taken.line("w.pth") == (
        f"w.pth: took `state_dict_ema` (averaged weights), {len(state)} tensors of float32, int64; left: state_dict"
    )


def test_a_key_chooses_among_the_weights_of_a_file(donor, network, tmp_path):
    state = donor.state_dict()
    path = written({"state_dict": state, "ema": {name: value * 0 for name, value in state.items()}}, tmp_path)
    taken = take_weights(network, path, "cifar_resnet8", choice=WeightsChoice(nest="state_dict"))
    assert same(donor, network)
    assert not taken.averaged
    with pytest.raises(UserError, match=r"w\.pth: no weights under 'model' \(nest\); there are: ema, state_dict"):
        take_weights(network, path, "cifar_resnet8", choice=WeightsChoice(nest="model"))


def test_several_weights_of_unknown_keys_are_refused_until_one_is_named(donor, network, tmp_path):
    state = donor.state_dict()
    path = written({"first": state, "second": {name: value * 0 for name, value in state.items()}}, tmp_path)
    with pytest.raises(UserError, match=r"several weights fit: first, second; say which by nest: first"):
        take_weights(network, path, "cifar_resnet8")
    take_weights(network, path, "cifar_resnet8", choice=WeightsChoice(nest="first"))
    assert same(donor, network)


def test_strays_and_prefixes_are_left_out_by_name(donor, network, tmp_path):
    stray = {**prefixed(donor.state_dict(), "model."), "criterion.weight": torch.ones(3)}
    path = written(stray, tmp_path)
    with pytest.raises(
        UserError, match=r"of another network: .*; what begins with 'model\.' fits: write prefix: model"
    ):
        take_weights(network, path, "cifar_resnet8")
    for choice in (WeightsChoice(ignore=("criterion.*",)), WeightsChoice(prefix="model.")):
        take_weights(network, path, "cifar_resnet8", choice=choice)
        assert same(donor, network)


def one_by(scale):
    return lambda state: {**state, "fc.weight": state["fc.weight"].double() * 0 + scale}


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (one_by(1e300), r"weights too large for float32: fc\.weight$"),
        (lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse()}, r"no plain tensors: fc\.weight \(sparse_coo\)"),
        (lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse_csr()}, r"no plain tensors: fc\.weight \(sparse_csr\)"),
        (lambda s: {**s, "fc.weight": s["fc.weight"].to("meta")}, r"no plain tensors: fc\.weight \(without numbers\)"),
        (lambda s: {**s, "bn1.running_var": s["bn1.running_var"] - 9}, r"variances below 0: bn1\.running_var"),
        (lambda s: {**s, "fc.weight": s["fc.weight"][:1], "fc.bias": s["fc.bias"][:1]}, r"weights for 1 class \(fc"),
        (lambda s: {**s, "fc.weight": s["fc.weight"].char()}, r"no floating-point numbers: fc\.weight \(int8\)"),
        (
            lambda s: {**s, "fc.weight": torch.quantize_per_tensor(s["fc.weight"], 0.1, 0, torch.qint8)},
            r"no floating-point numbers: fc\.weight \(qint8\); give those before quantisation$",
        ),
        (
            lambda s: {**s, "conv1.weight": torch.zeros(1, 3, 3, 3)},
            r"weights of another network: conv1\.weight \(1, 3, 3, 3\) instead of \(16, 3, 3, 3\)$",
        ),
    ],
)
def test_weights_that_cannot_be_taken_say_why(donor, network, tmp_path, make, line):
    with pytest.raises(UserError, match=line):
        take_weights(network, written(make(donor.state_dict()), tmp_path), "cifar_resnet8")


def tar_of_text():
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"no weights here\n", "text"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
        (tar_of_text(), "a tar archive; unpack it first"),
        ("zip", "a zip archive of other files"),
        ("safetensors", "a file of safetensors; name it"),
        ("script", "a program of TorchScript"),
    ],
)
def test_a_file_that_torch_did_not_write_is_called_what_it_is(donor, network, tmp_path, content, kind):
    path = tmp_path / "w.pth"
    if content == "zip":
        with ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "a")
    elif content == "safetensors":
        save_weights(donor, path)
    elif content == "script":
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"w\\.pth: cannot be read: it is {kind}") as caught:
        import_weights(network, str(path), "cifar_resnet8")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"<html>", (2**60).to_bytes(8, "little") + b"PK"])
def test_a_file_of_safetensors_that_is_none_is_said_before_anything_is_built(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^weights: .*w\.safetensors: cannot be read: it is "):
        check_file(path)


def test_a_sound_file_of_safetensors_passes(donor, tmp_path):
    save_weights(donor, tmp_path / "w.safetensors")
    check_file(tmp_path / "w.safetensors")


def test_nothing_of_torchs_own_warnings_is_shown(donor, network, tmp_path, recwarn):
    state = donor.state_dict()
    path = written({**state, "fc.weight": torch.quantize_per_tensor(state["fc.weight"], 0.1, 0, torch.qint8)}, tmp_path)
    recwarn.clear()
    with pytest.raises(UserError, match="no floating-point numbers"):
        take_weights(network, path, "cifar_resnet8")
    assert not recwarn.list


def test_the_class_that_may_not_be_made_is_named(donor, network, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FILE", str(tmp_path / "touched"))
    path = written({"state_dict": donor.state_dict(), "loss": nn.MSELoss()}, tmp_path)
    with pytest.raises(UserError, match=r"holds a Python object, torch\.nn\.modules\.loss\.MSELoss, and making"):
        import_weights(network, path, "cifar_resnet8")


def test_a_path_may_begin_with_a_tilde(donor, network, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(donor.state_dict(), tmp_path)
    import_weights(network, "~/w.pth", "cifar_resnet8")
    assert same(donor, network)
