"""A project of one's own: the folder that `distillery init` writes, laid out like Distillery's repository."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from distillery.errors import UserError
from distillery.experiment.json_schema import write_schemas
from distillery.paths import shipped

NAMES = ("config", "workflow", "local", "slurm", "README.md", ".gitignore")
DVC_NAMES = ("dvc.yaml", ".dvcignore", ".dvc", "data.dvc")


def create_project(folder: Path, *, dvc: bool = False) -> None:
    """Write a project into a folder, all of it or nothing; with ``dvc``, have DVC keep its versions.

    Raises:
        UserError: the folder is a file, or has something of a name that would be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a new or an empty folder")
    names = [*NAMES, *(DVC_NAMES if dvc else ())]
    for name in names:
        if os.path.lexists(folder / name):
            raise UserError(
                f"{folder / name}: is there already, and init writes {', '.join(names)}; name a new or an empty folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".distillery-", dir=folder) as staging:
        _write_files(Path(staging), dvc)
        for path in Path(staging).iterdir():
            path.rename(folder / path.name)
    print(f"{folder}: config/example.yaml is a page that runs as it is. Next, in this folder: snakemake --cores all")
    if dvc:
        _start_dvc(folder.resolve())


def _write_files(folder: Path, dvc: bool) -> None:
    template = Path(__file__).parent / "template"
    shutil.copytree(template / "config", folder / "config")
    shutil.copy(shipped("config/datasets.yaml"), folder / "config")
    shutil.copytree(shipped("config/recipes"), folder / "config" / "recipes")
    shutil.copytree(template / "workflow", folder / "workflow")
    shutil.copytree(shipped("workflow/profiles"), folder / "workflow" / "profiles")
    write_schemas(folder / "workflow" / "schemas")
    for name in ("local", "slurm"):
        (folder / name).symlink_to(Path("workflow", "profiles", name))
    shutil.copy(template / "README.md", folder)
    shutil.copy(template / "gitignore", folder / ".gitignore")
    if dvc:
        shutil.copy(template / "dvc" / "dvc.yaml", folder)
        shutil.copy(template / "dvc" / "dvcignore", folder / ".dvcignore")
        (folder / "workflow" / "data-version").symlink_to(Path("..", "data.dvc"))


def _start_dvc(folder: Path) -> None:
    """Let DVC, in a git repository, know the example's images; without DVC, say what there is to do."""
    if find_spec("dvc") is None:
        print(
            "DVC is not installed: pip install 'distillery[dvc]', then dvc init, and dvc add data once images are there"
        )
        return
    from distillery.data.digits import write_digits

    write_digits(folder / "data" / "digits")
    found = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True)
    if found.returncode:
        _run(folder, "git", "init", "--quiet")
    inside = found.returncode == 0 and Path(found.stdout.strip()) != folder
    _run(folder, sys.executable, "-m", "dvc", "init", "--quiet", *(["--subdir"] if inside else []))
    _run(folder, sys.executable, "-m", "dvc", "add", "--quiet", "data")
    print("DVC knows data/ by data.dvc. After snakemake, `dvc repro` records results.")


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"{folder}: the project is written, but `{' '.join(command[-3:])}` failed: {said}")
