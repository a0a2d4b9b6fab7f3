"""The engine against a plain torch loop, and two processes against one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.cpu_sync_batchnorm import convert_for_cpu
from tests.training.processes import make_in_processes

from distillery.data.arrow import ArrowImages
from distillery.data.decode import decode_rgb
from distillery.data.manifest import load_manifest
from distillery.models import create_model
from distillery.models.normalize import Normalize
from distillery.randomness import addressed_permutation, seed_generators
from distillery.training import build

ROOT = Path(__file__).parents[2]


def test_the_engine_equals_a_plain_loop(workplace):
    """SGD with momentum on unaugmented images, written out: the weights agree to the last bit."""
    workplace.edit_recipe(
        "epochs: 2\naugment: []\noptimizer: {name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.001}\n"
        "schedule: {name: step, drops: [1]}"
    )
    # The recipe's list of operations loses its items with its key.
    recipe = workplace.folder / "config/recipes/tiny.yaml"
    recipe.write_text("\n".join(line for line in recipe.read_text().splitlines() if not line.startswith("  - ")))
    torch.set_num_threads(1)
    workplace.make()

    folder = workplace.results / "datasets" / "tiny"
    manifest = load_manifest(folder)
    images = ArrowImages(folder, manifest, "train")
    pixels = torch.stack([decode_rgb(images.encoded(index)) for index in range(len(images))])
    labels = torch.as_tensor(images.labels)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (manifest.statistics.mean, manifest.statistics.std))
    seed_generators(0, "init")
    network = create_model("cifar_resnet8", 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.001)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.1**epoch
        order = addressed_permutation(len(images), 0, "order", epoch)
        for step in range(len(images) // 8):
            index = order[8 * step : 8 * step + 8]
            logits = network((pixels[index].float() / 255 - mean) / std)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[index]).backward()
            optimizer.step()
    trained = load_file(workplace.results / "tiny/small/seed0/weights.safetensors")
    for name, value in network.state_dict().items():
        assert torch.allclose(trained[name].to(value.dtype), value, rtol=1e-5, atol=1e-7), name


LINE = "{model: cifar_resnet8, recipe: tiny, %s}"
RUNS = {
    "contrasted": "teacher: big, objective: {ce: {}, crd: {negatives: 9}}",
    # Without a term on logits, the student's last layer has no gradient.
    "matched": "teacher: big, objective: {mgd: {loss_factor: 100}}",
    "headed": "teacher: big, objective: {simkd: {}, srrl: {weight: 0.1}, ofa: {weight: 0.1}}",
    "refined": "objective: {pskd: {}}",
    "paired": "objective: {ce: {}, cskd: {}}",
    "mixed": "teacher: big, objective: {ce: {}, kd: {}}, mix: {mixup: 0.8, cutmix: 1.0}, drop_last: true",
}


@pytest.fixture
def halved(workplace):
    """The tiny workplace with runs that two processes can make as one does."""
    workplace.edit_recipe("sync_batchnorm: true\ndrop_last: false")
    lines = "".join(f"    {name}: {LINE % keys}\n" for name, keys in RUNS.items())
    workplace.edit("  tables:", f"{lines}  tables:")
    return workplace


@pytest.fixture
def float64(monkeypatch):
    """Networks and terms in float64: in float32, on some processor an activation lies so near 0 that rounding, which
    differs with the number of images, decides whether it lives, and the weights go apart from there."""

    def normalized(self, images):
        return (images.double() / (255 if images.dtype == torch.uint8 else 1) - self.mean) / self.std

    monkeypatch.setattr(Normalize, "forward", normalized)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same_result(alone, together, rtol=2e-3, atol=2e-4):
    assert '"processes": 2' in (together / "run.json").read_text()
    weights = load_file(together / "weights.safetensors")
    for name, value in load_file(alone / "weights.safetensors").items():
        assert torch.allclose(weights[name].double(), value.double(), rtol=rtol, atol=atol), name
    histories = [(folder / "history.csv").read_text().split() for folder in (alone, together)]
    for before, after in zip(*histories, strict=True):
        assert before.split(",")[0] == after.split(",")[0]


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("run", ["small", *RUNS])
def test_two_processes_give_the_result_of_one(halved, monkeypatch, run):
    if "teacher" in RUNS.get(run, ""):
        halved.make("big")
    alone, together = halved.make(run), halved.job(run, results="together")
    monkeypatch.setattr(build, "convert_sync_batchnorm", convert_for_cpu)
    make_in_processes(together, 2)
    assert_same_result(alone, together.folder, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_torchrun_gives_the_result_of_one_process(halved):
    halved.make("big")
    alone, together = halved.make("taught"), halved.job("taught", results="together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(ROOT / "tests/cpu_sync_batchnorm.py"), "train", str(halved.experiment), "taught"]
    arguments += ["--results", str(together.results), "--workers=0", "--threads=1"]
    done = subprocess.run(
        command + arguments, check=False, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_result(alone, together.folder)
