"""What `distillery check` says of memory, disks and data before anything is trained: a line each, and no failure."""

import shutil
from collections import namedtuple

import pytest

from distillery.cli import main
from distillery.data.manifest import FILE_NAME
from distillery.experiment import load_experiment
from distillery.experiment.schema.objective import CRDOptions
from distillery.models import create_model
from distillery.models.weights import save_weights
from distillery.paths import SHARED_MEMORY
from distillery.results import SEAL, read_json, write_sealed
from distillery.training import forecast
from distillery.training.forecast import Forecast

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def say(workplace, capsys, monkeypatch):
    """Check the tiny experiment on a machine with so much room; what stands on both outputs."""

    def checked(shared=2**40, disk=2**40, memory=2**40, workers=2):
        monkeypatch.setattr(forecast, "_machine_memory", lambda: memory)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, shared if path == SHARED_MEMORY else disk))
        with pytest.raises(SystemExit) as ended:
            main(["check", str(workplace.experiment), "--results", str(workplace.results), "--workers", str(workers)])
        assert ended.value.code == 0
        said = capsys.readouterr()
        return said.out, [line for line in said.err.splitlines() if line.startswith("warning: ")]

    return checked


def test_a_machine_with_room_for_all_is_no_news(say):
    out, warnings = say()
    assert warnings == []
    assert "On disk the runs leave about " in out


def test_batches_that_shared_memory_has_no_room_for_are_named(say, workplace):
    workplace.edit_recipe("batch: 32\npreprocess: {size: 224}")
    wanted = 3 * 2 * 32 * 3 * 224**2
    assert say(shared=wanted, workers=3)[1] == []
    (line,) = say(shared=wanted - 1, workers=3)[1]
    assert line == (
        f"warning: {workplace.experiment}: tiny.runs.big.batch: 32: 3 workers hold 28.9 MB of batches in "
        f"{SHARED_MEMORY}, which has 28.9 MB free; use fewer --workers, or give a container more by --shm-size=1g"
    )
    assert say(shared=0, workers=0)[1] == []


def test_a_disk_that_is_too_small_is_named(say, workplace):
    (line,) = say(disk=10**6)[1]
    assert "but its disk has 1.0 MB free; make room, or give another --results" in line


def test_the_room_that_banks_need_is_said_and_counted(say, workplace):
    out, _ = say()
    assert "bank" not in out
    workplace.edit("teacher: big,", "teacher: {run: big, answers: bank},")
    out, _ = say()
    # Two seeds, two epochs of 32 images, three logits of 4 bytes.
    assert (
        "of checkpoints while it trains; 2 banks of answers take 0.0 MB more, each until its last student is done "
        "(`snakemake --notemp` and `distillery answer` leave it); in memory" in out
    )
    workplace.edit("answers: bank},", "answers: bank}, crops: 100000,")
    out, _ = say()
    assert "; 1 bank of answers takes 63.2 MB more, each until" in out
    (line,) = say(disk=50 * 10**6)[1]
    assert ", and their banks of answers 63.2 MB, but its disk has 50.0 MB free; make room" in line
    experiment = load_experiment(workplace.experiment)
    (bank,) = Forecast(experiment, workplace.results, 2).banks
    bank.folder.mkdir(parents=True)
    assert say(disk=50 * 10**6)[1] == []


@pytest.mark.parametrize("line", ["tiny: {path: nowhere}", "tiny: {path: x, images: {train: 36}, unlabelled: more}"])
def test_banks_of_images_that_nobody_has_counted_are_no_forecast(say, workplace, line):
    (workplace.results / "datasets/tiny" / FILE_NAME).unlink()
    (workplace.folder / "config/datasets.yaml").write_text(line + "\n")
    workplace.edit("teacher: big,", "teacher: {run: big, answers: bank},")
    out, _ = say()
    assert "; 2 banks of answers take room more (how much is known once tiny is prepared), each until" in out
    assert "its size is known once tiny is prepared" in out


def test_a_term_that_remembers_too_much_is_named(say, workplace):
    workplace.edit("kd: {weight: 0.5, temperature: 2}", "crd: {features: 65536}")
    (line,) = say(memory=15 * 10**6)[1]
    assert "tiny.runs.taught.objective.crd: the run has " in line
    (line, *_) = say(memory=10**5)[1]
    assert "tiny.runs.big.model: the run has " in line


def test_copies_and_contradicting_labels_of_the_data_are_named(say, workplace):
    path = workplace.results / "datasets" / "tiny" / FILE_NAME
    content = read_json(path, "it")
    del content[SEAL]
    content["duplicates"] |= {
        "contradicting": [["train/ape/000.png", "train/bee/000.png"]],
        "across_splits": [["train/ape/001.png", "val/ape/001.png"]],
    }
    write_sealed(path, content)
    first, second = say()[1]
    assert first.startswith(f"warning: {path}: duplicates.contradicting: 1 copies of images have another label, as ")
    assert "train/ape/000.png = train/bee/000.png; correct one of the labels" in first
    assert "1 validation images are training images, as train/ape/001.png = val/ape/001.png" in second


def test_the_estimates_are_of_the_right_size(workplace, tmp_path):
    """A checkpoint and the weights of a real run are what was said of them, to a few percent."""
    experiment = load_experiment(workplace.experiment)
    estimated = Forecast(experiment, workplace.results, 2)
    network = create_model("cifar_resnet8", 3)
    save_weights(network, tmp_path / "weights.safetensors")
    real = (tmp_path / "weights.safetensors").stat().st_size
    assert estimated.network(experiment.spec("small")) == pytest.approx(real, rel=0.05)
    assert estimated.state(experiment.spec("small")) == 2 * estimated.network(experiment.spec("small"))
    assert CRDOptions(features=4).memory(10, 3) == 320
