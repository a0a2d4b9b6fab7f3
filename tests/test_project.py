"""`distillery init`: a project that is valid as it is written, or nothing."""

import pytest

from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.loading import load_dataset
from distillery.experiment.reading import read_mapping
from distillery.paths import shipped
from distillery.project import create_project


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_its_example_is_valid_and_finds_its_data_set_and_recipes(tmp_path):
    create_project(tmp_path / "new" / "thesis")
    experiment = load_experiment(tmp_path / "new" / "thesis" / "config" / "example.yaml")
    assert experiment.dataset.bundled == "digits"
    assert experiment.teachers == {"resnet20"}
    assert (tmp_path / "new" / "thesis" / "slurm" / "profile.yaml").is_file()
    assert not list((tmp_path / "new" / "thesis").glob(".distillery*"))


def test_it_starts_from_the_data_sets_recipes_and_profiles_of_the_package(tmp_path):
    create_project(tmp_path)
    for name in ("config/datasets.yaml", "config/recipes/digits.yaml", "workflow/profiles/slurm/profile.yaml"):
        assert (tmp_path / name).read_text() == shipped(name).read_text()
    assert load_dataset(tmp_path / "config" / "datasets.yaml", "cifar10").classes == 10


@pytest.mark.parametrize("name", ["config", "workflow", "README.md", ".gitignore", "slurm"])
def test_a_folder_with_something_of_these_names_is_left_as_it_is(tmp_path, name):
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(
        UserError, match=rf"{name}: is there already, and init writes config, .*; name a new or an empty"
    ):
        create_project(tmp_path)
    assert contents(tmp_path) == [name]


def test_other_files_are_in_nobodys_way(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    create_project(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "thesis").write_text("")
    with pytest.raises(UserError, match="thesis: is a file; name a new or an empty folder"):
        create_project(tmp_path / "thesis")


def test_a_disk_that_fails_leaves_nothing_half_written(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distillery.project.write_schemas", fail)
    with pytest.raises(OSError, match="No space"):
        create_project(tmp_path)
    assert contents(tmp_path) == []


@pytest.mark.slow
def test_dvc_knows_the_images_and_the_page(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    create_project(tmp_path / "thesis", dvc=True)
    assert read_mapping(tmp_path / "thesis" / "data.dvc")["outs"][0]["nfiles"] == 1797
    assert read_mapping(tmp_path / "thesis" / "workflow" / "data-version") == read_mapping(
        tmp_path / "thesis" / "data.dvc"
    )
    pages = read_mapping(tmp_path / "thesis" / "dvc.yaml")["stages"]["experiment"]["foreach"]
    assert pages == {"example": "digits"}
