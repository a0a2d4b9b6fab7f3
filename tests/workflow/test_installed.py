"""docs/projects.md, followed to the letter with an installed wheel, in a folder far from the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv") or shutil.which("uv", path=ROOT / ".uv" / "bin")
STATUS = ("distillery", "status", "config/thesis.yaml", "--json")
EXPORT = ("distillery", "export")
EXPECT = """
import json
import sys
from pathlib import Path

import torch
from distillery.evaluation.restore import restore_folder
from distillery.experiment.plugins import use_project

use_project(Path.cwd())
images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
runs = [restore_folder(Path("results/thesis", run, "seed0")) for run in ("student", "teacher")]
for name, kept in ("images", images), *((run.record["run"], run.predict(images)) for run in runs):
    Path(f"{name}.json").write_text(json.dumps(kept.tolist()))
"""
WITHOUT = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

paths = map(Path, ("images.json", "student.json", "teacher.json"))
images, student, teacher = (np.float32(json.loads(path.read_text())) for path in paths)
session = onnxruntime.InferenceSession("exports/thesis/student-seed0/onnx/model.onnx")
np.testing.assert_allclose(session.run(["logits"], {"images": images})[0], student, rtol=1e-4, atol=1e-4)
network = timm.create_model("local-dir:exports/thesis/teacher-seed0/timm", pretrained=True).eval()
config = timm.data.resolve_model_data_config(network)
assert config["input_size"] == (3, 8, 8)
assert network.pretrained_cfg["label_names"] == ["disc", "ring", "star"]
mean, std = (np.float32(config[key])[:, None, None] for key in ("mean", "std"))
found = network(torch.from_numpy((images - mean) / std)).detach().numpy()
np.testing.assert_allclose(found, teacher, rtol=1e-4, atol=1e-4)
try:
    import distillery.cli
except ModuleNotFoundError:
    print("without Distillery, both agree")
"""
SNAKEMAKE = "#!{python}\nimport sys\n\nfrom snakemake.cli import main\n\nsys.exit(main())\n"


class Installed:
    """A folder, and an environment that has the wheel, and its dependencies from the one that runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "venv" / "bin"
        # `bare` is an environment of somebody who has timm and ONNX, but not Distillery.
        for name in ("venv", "bare"):
            self.call(UV, "venv", "--quiet", "--offline", "--python", sys.executable, name)
            (site,) = folder.glob(f"{name}/lib/python*/site-packages")
            # Of the other environment, its packages, but not the path to this checkout.
            (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist"), cwd=ROOT)
        (wheel,) = (folder / "dist").glob("*.whl")
        self.call(UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", "venv", str(wheel))
        (self.bin / "snakemake").write_text(SNAKEMAKE.format(python=self.bin / "python"))
        (self.bin / "snakemake").chmod(0o755)

    def call(self, *command: str, cwd: Path | None = None) -> str:
        kept = {name: os.environ[name] for name in ("HOME", "UV_CACHE_DIR", "UV") if name in os.environ}
        path = os.pathsep.join([str(self.bin), os.defpath])
        # Away from the checkout, whose packages a caller's PYTHONPATH might name.
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=kept | {"PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    if UV is None:
        pytest.skip("needs uv, which make brings to .uv/")
    return Installed(tmp_path_factory.mktemp("installed"))


def write_down(project: Path) -> None:
    """Write what the page says, where it says so."""
    page = (ROOT / "docs" / "projects.md").read_text()
    dataset, recipe, model, term, experiment = re.findall(r"```\w+\n(.*?)```", page, flags=re.DOTALL)[:5]
    with (project / "config" / "datasets.yaml").open("a") as file:
        file.write(dataset)
    (project / "plugins").mkdir()
    for name, text in {
        "config/recipes/shapes.yaml": recipe,
        "plugins/nets.py": model,
        "plugins/gap.py": term,
        "config/thesis.yaml": experiment,
    }.items():
        assert f"`{name}`" in page
        (project / name).write_text(text)
    generator = np.random.Generator(np.random.Philox(key=0))
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(("disc", "ring", "star")):
            folder = project / "data" / "shapes" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 128, (8, 8, 3)) + 60 * np.eye(3, dtype=int)[number]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")


def watch(installed, project, until):
    """The states that runs of the page have on the board, asked again after a second's rest."""
    seen = set()
    while True:
        last = until()
        seen |= {run["state"] for run in json.loads(installed.call(*STATUS, cwd=project))["runs"]}
        if last:
            return seen
        time.sleep(2)


def test_a_project_of_ones_own_from_an_empty_folder_to_networks_that_need_no_distillery(installed):
    assert "site-packages/distillery" in installed.call("python", "-c", "import distillery; print(distillery.__file__)")
    installed.call("distillery", "init", "my-thesis")
    project = installed.folder / "my-thesis"
    planned = installed.call("snakemake", "--cores", "2", "--dry-run", cwd=project)
    assert "assemble the tables of example" in planned
    write_down(project)
    for profile in ("slurm", "local", "workflow/profiles/cluster-generic"):
        planned = installed.call("snakemake", "--cores", "2", "--dry-run", "--profile", profile, cwd=project)
        assert {"assemble the tables of example", "assemble the tables of thesis"} <= set(
            re.findall(r"^Job \d+: (.+)$", planned, flags=re.MULTILINE)
        )
    assert os.access(project / "workflow" / "profiles" / "cluster-generic" / "cancel.sh", os.X_OK)
    assert "plugins.nets:small" in installed.call("distillery", "check", "config/thesis.yaml", cwd=project)
    with ThreadPoolExecutor() as pool:
        made = pool.submit(installed.call, "snakemake", "--cores", "2", "results/tables/thesis.md", cwd=project)
        seen = watch(installed, project, until=made.done)
        made.result()
    # Another terminal has seen it at work; a board of a run that is just being started says so, too.
    assert seen & {"running", "trained"}
    assert watch(installed, project, until=lambda: True) == {"done"}
    assert "<table>" in (project / "results" / "tables" / "thesis.html").read_text()
    assert re.search(r"\| student +\| teacher +\|", (project / "results" / "tables" / "thesis.md").read_text())

    for run, to in (("thesis/student", "onnx"), ("thesis/teacher", "timm")):
        assert "logits of 4 images differ by" in installed.call(*EXPORT, run, "--to", to, cwd=project)
    installed.call("python", "-c", EXPECT, cwd=project)
    bare = str(installed.folder / "bare" / "bin" / "python")
    assert "without Distillery, both agree" in installed.call(bare, "-c", WITHOUT, cwd=project)

    # Another comment retrains nothing, another loss retrains the run that has it.
    term = project / "plugins" / "gap.py"
    term.write_text(f"# Mine.\n{term.read_text()}")
    again = ("snakemake", "--cores", "2", "--dry-run", "results/tables/thesis.md")
    assert "Nothing to be done" in installed.call(*again, cwd=project)
    term.write_text(term.read_text().replace(".mean()", ".sum()"))
    planned = installed.call(*again, cwd=project)
    assert "train thesis/student, seed 0" in planned
    assert "train thesis/teacher" not in planned
    assert "objective.gap.source.0: " in installed.call("distillery", "why", "thesis/student", cwd=project)


def test_a_workflow_of_ones_own_takes_it_as_a_module(installed):
    installed.call("distillery", "init", "paper")
    project = installed.folder / "paper"
    (project / "config" / "example.yaml").rename(project / "config" / "thesis.yaml")
    page = (project / "config" / "thesis.yaml").read_text().replace("example:", "thesis:")
    (project / "config" / "thesis.yaml").write_text(page)
    module = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "projects.md").read_text(), flags=re.DOTALL)[-1]
    (project / "workflow" / "Snakefile").write_text(module)
    planned = installed.call("snakemake", "--cores", "2", "--dry-run", cwd=project)
    assert "assemble the tables of thesis" in planned
    assert "rule paper" in planned


def test_the_tutorial_is_a_page_with_its_networks_and_a_plan(installed):
    """Its images and the hub's weights are the reader's."""
    installed.call("distillery", "init", "birds")
    project = installed.folder / "birds"
    dataset, recipe, page = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), flags=re.DOTALL)
    with (project / "config" / "datasets.yaml").open("a") as file:
        file.write(dataset)
    (project / "config" / "recipes" / "birds.yaml").write_text(recipe)
    (project / "config" / "birds.yaml").write_text(page)
    assert "timm:mobilenetv3_small_100" in installed.call("distillery", "check", "config/birds.yaml", cwd=project)
    rehearsal = ("snakemake", "--cores", "2", "--dry-run", "results/tables/birds.md", "--config", "rehearsal=true")
    assert "train birds/taught, seed 0" in installed.call(*rehearsal, cwd=project)
