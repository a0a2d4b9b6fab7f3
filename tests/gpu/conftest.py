"""One experiment with a run of every objective, made on the GPU and on the CPU; and a report of what was measured.

``make test-gpu`` runs these tests, and fails where there is no GPU. TEST_GPU=cpu tries on the CPU all that can be.
"""

import csv
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from tests.conftest import Workplace

HERE = Path(__file__).parent
WANTED = os.environ.get("TEST_GPU")
REHEARSED = WANTED == "cpu"

# cuBLAS reads it when its first handle is made, which may be before the first run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

OBJECTIVES = {
    "ce": "{ce: {}}",
    "kd": "{ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}",
    "mgd": "{ce: {}, mgd: {reducer: amp, loss_factor: 100}}",
    "overhaul": "{ce: {}, overhaul: {loss_factor: 100}}",
    "bake": "{ce: {}, bake: {}}",
    "rkd": "{ce: {}, rkd: {}}",
    "crd": "{ce: {}, crd: {negatives: 9}}",
    "logits": "{ce: {}, kd: {temperature: learned}, dkd: {beta: 1}, nkd: {}, dist: {}, wttm: {}, wsld: {}, uskd: {}}",
    "maps": "{ce: {}, fitnet: {}, at: {}, nst: {}, vid: {}, sp: {}, reviewkd: {}, masked_generative: {}}",
    "relations": "{ce: {}, pkt: {weight: 100}, cc: {}, srd: {}, ickd: {}}",
    "similarity": "{similarity: {}, similarity_local: {}}",
    "views": "{mlkd: {}}",
    "refined": "{pskd: {}, tfkd: {}}",
    "paired": "{ce: {}, cskd: {}}",
    "simkd": "{simkd: {}}",
    "cat": "{ce: {}, cat: {weight: 0.1}}",
    "srrl": "{ce: {}, srrl: {}}",
    "ofa": "{ce: {}, ofa: {eps: 1.5}}",
    "few_labels": "{ce: {}, kd: {}}, labels: 6",
}
WITHOUT_TEACHER = {"ce", "bake", "refined", "paired"}

FIGURES: list[str] = []


def pytest_collection_modifyitems(items):
    """Skipped unless asked for; once asked for, a machine without a GPU is an error."""
    here = [item for item in items if HERE in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.gpu)
    if WANTED is None:
        for item in here:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))
    elif here and not REHEARSED:
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(f"tests/gpu: torch {torch.__version__} finds no GPU; see nvidia-smi")


def pytest_runtest_setup(item):
    if HERE in item.path.parents and REHEARSED and item.get_closest_marker("cuda_only"):
        pytest.skip("a GPU's alone")


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda_only: has no meaning on a CPU")


def pytest_terminal_summary(terminalreporter):
    if not FIGURES:
        return
    import torch

    terminalreporter.section("GPU report")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["none, on the CPU"]
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    terminalreporter.write_line(f"{', '.join(devices)}; {versions}, Python {sys.version.split()[0]}")
    for line in FIGURES:
        terminalreporter.write_line(line)


@pytest.fixture
def report(request):
    """Add a line to the report: ``report(value=..., ...)``."""

    def add(**figures):
        words = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        ]
        FIGURES.append(f"{request.node.name}: {', '.join(words)}")

    return add


@pytest.fixture(scope="session")
def device():
    import torch

    return torch.device("cpu" if REHEARSED else "cuda")


@contextmanager
def only_cpu():
    """As on a machine without a GPU."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@contextmanager
def tf32(convolutions):
    """Whether convolutions of float32 may round their inputs to 10 bits, as cuDNN does by default."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = convolutions
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Arena(Workplace):
    """The tiny workplace with a teacher and a run of every objective, whose recipe is ``gpu``."""

    def recipe(self, **keys):
        """Write the students' recipe anew."""
        recipes = self.folder / "config" / "recipes"
        body = yaml.safe_load((recipes / "tiny.yaml").read_text()) | {"epochs": 1} | keys
        (recipes / "gpu.yaml").write_text(yaml.safe_dump(body, sort_keys=False))

    def weights(self, run, results, **machine):
        """Make a run; its weights as one vector, and the rows of its history."""
        import torch
        from safetensors.torch import load_file

        folder = self.make(run, results=results, **machine)
        state = load_file(folder / "weights.safetensors")
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader((folder / "history.csv").open())]
        return torch.cat([state[name].double().flatten() for name in sorted(state)]), rows


@pytest.fixture(scope="session")
def taught_tiny(prepared_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "work"
    shutil.copytree(prepared_tiny, folder)
    arena = Arena(folder)
    lines = [
        f"    {name}: {{model: cifar_resnet8, recipe: gpu, objective: {objective}"
        + ("" if name in WITHOUT_TEACHER else ", teacher: big")
        + "}"
        for name, objective in OBJECTIVES.items()
    ]
    arena.edit("  tables:", "\n".join([*lines, "  tables:"]))
    arena.recipe()
    with only_cpu():
        arena.make("big")
    return folder


@pytest.fixture
def arena(taught_tiny, tmp_path):
    """A private copy of the workplace with its trained teacher."""
    shutil.copytree(taught_tiny, tmp_path / "work")
    return Arena(tmp_path / "work")


def distance(ours, theirs):
    """The norm of the difference, relative to that of the second."""
    return ((ours - theirs).norm() / theirs.norm()).item()
