"""docs/library.md, literally: in a plain loop, and in four libraries' loops where they are installed."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from distillery import Distiller, create_model

PAGE = (Path(__file__).parents[2] / "docs" / "library.md").read_text()
SECTIONS = {part.partition("\n")[0].lstrip("# "): part for part in re.split(r"(?m)^(?=#{1,2} )", PAGE) if part}
PLAIN, ALONE = "In your own training loop", "Losses alone"
LIBRARIES = {"Lightning": "lightning", "timm": "timm.task", "Hugging Face Trainer": "transformers",
             "Accelerate": "accelerate"}  # fmt: skip


class Items(TensorDataset):
    """What the Trainer of transformers takes."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return {"pixel_values": image, "labels": label}


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images, labels = torch.randn(24, 3, 32, 32), torch.arange(24) % 5
    student, teacher = create_model("cifar_resnet8", 5), create_model("cifar_resnet14", 5)
    return {
        "torch": torch, "F": torch.nn.functional, "Distiller": Distiller, "student": student, "teacher": teacher,
        "loader": DataLoader(TensorDataset(images, labels), batch_size=8), "train_set": Items(images, labels),
        "images": images[:8], "labels": labels[:8], "indices": torch.arange(8), "train_labels": labels,
        "student_logits": torch.randn(8, 5), "teacher_logits": torch.randn(8, 5),
    }  # fmt: skip


def run(section, names):
    before = {name: value.clone() for name, value in names["student"].state_dict().items()}
    teacher = {name: value.clone() for name, value in names["teacher"].state_dict().items()}
    blocks = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, f"docs/library.md: {section}", "exec"), names)
    assert all(torch.equal(value, teacher[name]) for name, value in names["teacher"].state_dict().items())
    after = names["student"].state_dict()
    return any(not torch.equal(value, before[name]) for name, value in after.items())


def test_every_section_is_run():
    assert set(SECTIONS) == {PLAIN, ALONE, *LIBRARIES}


@pytest.mark.slow
def test_a_plain_loop(names, one_thread):
    assert run(PLAIN, names)
    assert Path("student.pt").is_file()


@pytest.mark.slow
def test_losses_alone(names):
    run(ALONE, names)
    assert names["loss"].isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("section", LIBRARIES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_another_librarys_loop_trains_the_student_and_not_the_teacher(names, section, one_thread):
    pytest.importorskip(LIBRARIES[section], reason=f"{LIBRARIES[section]} is not installed")
    assert run(section, names)
