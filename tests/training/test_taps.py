"""Runs whose features cannot be taken where they were planned stop in their first step, in one line."""

import copy
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.cpu_sync_batchnorm import convert_for_cpu
from tests.training.processes import make_in_processes
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from distillery.cli import main
from distillery.experiment.zoo import ZOO, ZooEntry
from distillery.models import registry
from distillery.models.zoo.cifar_resnet import CifarResNet
from distillery.training import build

ROOT = Path(__file__).parents[2]
OBJECTIVES = {"mgd": "{ce: {}, mgd: {}}", "overhaul": "{ce: {}, overhaul: {}}"}


# --- networks that do not do what they did when their taps were planned -------------------------------------------


class Healthy(CifarResNet):
    def __init__(self, num_classes):
        super().__init__(8, num_classes)


class Skipping(Healthy):
    """Trains without its last stage, for whose channels it puts zeros."""

    def forward(self, images_BCHW):
        if not self.training:
            return super().forward(images_BCHW)
        feature = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(images_BCHW)))))
        return self.fc(F.pad(feature.mean(dim=(2, 3)), (0, 32)))


class Repeating(Healthy):
    """Looks at its images twice while it trains."""

    def forward(self, images_BCHW):
        if self.training:
            super().forward(images_BCHW)
        return super().forward(images_BCHW)


class Shrinking(Healthy):
    """Trains on images of half the size."""

    def forward(self, images_BCHW):
        return super().forward(F.avg_pool2d(images_BCHW, 2) if self.training else images_BCHW)


class Replacing(Healthy):
    """Builds its last stage again whenever its mode is set, as networks do that are re-parametrised."""

    def train(self, mode=True):
        self.layer3 = copy.deepcopy(self.layer3)
        return super().train(mode)


class Keyword(nn.Module):
    """Hands its image on by keyword while it trains."""

    def __init__(self, num_classes):
        super().__init__()
        self.network = Healthy(num_classes)
        self.relu = nn.ReLU()
        self.last = nn.Linear(64, num_classes)
        self.network.fc = nn.Identity()

    def forward(self, images_BCHW):
        vector = self.network(images_BCHW)
        return self.last(input=vector) if self.training else self.last(vector)


def compiled(num_classes):
    network = Healthy(num_classes)
    network.compile(backend="eager")
    return network


def warm(num_classes):
    """Compiled in place, and warmed up: what was compiled without hooks then answers for student and teacher."""
    network = compiled(num_classes)
    images = torch.zeros(8, 3, 8, 8)
    network.train()(images)
    with torch.no_grad():
        network.eval().requires_grad_(False)(images)
    return network.requires_grad_(True)


def half_compiled(num_classes):
    """Only a part of it is compiled, whose names hold a prefix from the beginning."""
    network = Healthy(num_classes)
    network.layer3 = torch.compile(network.layer3, backend="eager")
    return network


def inside_compile(num_classes):
    return torch.compile(Healthy(num_classes), backend="eager")


def inside_data_parallel(num_classes):
    return nn.DataParallel(Healthy(num_classes))


# --- how they are trained -----------------------------------------------------------------------------------------


@pytest.fixture
def register(monkeypatch):
    """Make a network known as ``ours``."""

    def put(builder):
        entry = ZooEntry(f"{__name__}:{builder.__name__}", {}, 32, 0, "this test")
        monkeypatch.setattr(registry, "ZOO", {**ZOO, "ours": entry})

    yield put
    torch.compiler.reset()


@pytest.fixture
def train(workplace, capsys):
    """Train a run by the command line; its exit code and what it wrote to standard error."""

    def call(run):
        options = ["--results", str(workplace.results), "--workers", "0", "--threads", "1"]
        with pytest.raises(SystemExit) as ended:
            main(["train", str(workplace.experiment), run, *options])
        return ended.value.code, capsys.readouterr().err

    return call


def pair(workplace, teacher, student, objective):
    """Add a run ``student`` of a network that learns from another one's run ``teacher``."""
    objective = OBJECTIVES.get(objective, objective)
    workplace.edit(
        "  tables:",
        f"    teacher: {{model: {teacher}, recipe: tiny, seeds: [0]}}\n"
        f"    student: {{model: {student}, recipe: tiny, teacher: teacher, objective: {objective}}}\n  tables:",
    )
    return workplace.results / "tiny" / "student" / "seed0"


def assert_one_line(code, said, line):
    assert code == 2
    assert said.count("\n") == 1
    assert said.startswith("distillery: ours: ")
    assert line in said


def assert_nothing_looks_finished(folder: Path):
    assert not {path.name for path in folder.glob("*")} & {"run.json", "weights.safetensors", "metrics.json"}
    assert not list((folder.parents[2] / "work").glob("*"))


STUDENTS = [
    (Skipping, "the tap on layer3.0.relu input 2/2 gave nothing in this forward pass (0 calls of 2)"),
    (Replacing, "the tap on layer3.0.relu input 2/2 gave nothing in this forward pass (0 calls of 2)"),
    pytest.param(
        warm,
        "the tap on layer1.0.relu input 2/2 gave nothing in this forward pass (0 calls of 2)",
        marks=pytest.mark.slow,
    ),
    (Repeating, "the tap on layer1.0.relu input 2/2 fired 4 times, but one forward pass has 2 calls"),
    (Shrinking, "layer1 gave 16@4x4, not 16@8x8; plan the taps for the size of the images"),
    (inside_compile, "taps are planned on the network itself, not on OptimizedModule around it"),
    (inside_data_parallel, "taps are planned on the network itself, not on DataParallel around it"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("builder", "line"), STUDENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_student_that_is_not_as_planned_stops_its_run(workplace, register, train, builder, line):
    folder = pair(workplace, "cifar_resnet8", "ours", "overhaul" if builder in (Skipping, Repeating) else "mgd")
    assert train("teacher")[0] == 0
    register(builder)
    assert_one_line(*train("student"), line)
    assert_nothing_looks_finished(folder)
    register(Healthy)
    assert train("student")[0] == 0
    assert len(list(csv.DictReader((folder / "history.csv").open()))) == 2
    assert (folder / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_teacher_that_is_not_as_planned_stops_the_run(workplace, register, train, objective):
    folder = pair(workplace, "ours", "cifar_resnet8", objective)
    register(Healthy)
    assert train("teacher")[0] == 0
    register(Replacing)
    assert_one_line(*train("student"), "gave nothing in this forward pass (0 calls of 2)")
    assert_nothing_looks_finished(folder)


def test_a_moved_embedding_stops_the_run(workplace, register, train):
    workplace.edit(
        "  tables:", "    student: {model: ours, recipe: tiny, objective: {ce: {}, bake: {partners: 1}}}\n  tables:"
    )
    register(Keyword)
    assert_one_line(*train("student"), "the tap on last input gave nothing in this forward pass (1 calls of 1)")
    assert_nothing_looks_finished(workplace.results / "tiny" / "student" / "seed0")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("role", "builder"), [("student", compiled), ("teacher", compiled), ("teacher", warm), ("student", half_compiled)]
)
def test_a_network_that_compiles_itself_learns_and_teaches_as_it_does_otherwise(
    workplace, register, train, role, builder
):
    names = ("ours", "cifar_resnet8") if role == "teacher" else ("cifar_resnet8", "ours")
    folder = pair(workplace, *names, "mgd")
    register(Healthy)
    assert train("teacher")[0] == 0
    trained = []
    for network in (Healthy, builder):
        register(network)
        assert train("student")[0] == 0
        trained.append(load_file(folder / "weights.safetensors"))
    for value, other in zip(*(state.values() for state in trained), strict=True):
        torch.testing.assert_close(value, other)


SCRIPT = f"""
import sys
from tests.cpu_sync_batchnorm import main
from distillery.models import registry
from distillery.experiment.zoo import ZOO, ZooEntry

registry.ZOO = {{**ZOO, "ours": ZooEntry("{__name__}:" + sys.argv.pop(1), {{}}, 32, 0, "this test")}}
main()
"""


@pytest.fixture
def joined(workplace, register, train, monkeypatch):
    """A student for two processes, whose teacher is trained."""

    def begin(builder):
        workplace.edit_recipe("sync_batchnorm: true")
        pair(workplace, "cifar_resnet8", "ours", "mgd")
        assert train("teacher")[0] == 0
        register(builder)
        monkeypatch.setattr(build, "convert_sync_batchnorm", convert_for_cpu)
        return workplace.job("student")

    return begin


@pytest.mark.slow
def test_two_processes_train_a_student_that_is_as_planned(joined):
    job = joined(Healthy)
    make_in_processes(job, 2)
    assert (job.folder / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("builder", "line"), STUDENTS[:1])
def test_two_processes_stop_as_one_does(joined, builder, line):
    job = joined(builder)
    with pytest.raises(ProcessRaisedException, match=rf"ours: {re.escape(line)}"):
        make_in_processes(job, 2)
    assert_nothing_looks_finished(job.folder)


@pytest.mark.slow
@pytest.mark.parametrize(("builder", "line"), STUDENTS[-1:])
def test_launched_processes_stop_as_one_does(workplace, train, tmp_path, builder, line):
    workplace.edit_recipe("sync_batchnorm: true")
    folder = pair(workplace, "cifar_resnet8", "ours", "mgd")
    assert train("teacher")[0] == 0
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "distillery.cluster.launch", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(tmp_path / "script.py"), builder.__name__, "train", str(workplace.experiment), "student"]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, "--results", str(workplace.results), "--workers=0", "--threads=1"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | paths | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"distillery: ours: {line}" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_looks_finished(folder)
