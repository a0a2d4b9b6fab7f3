"""A teacher that answers once: banks recorded, shared, read, and refused where they are not this teacher's."""

import gc
import json
import shutil
import signal
import weakref

import numpy as np
import pytest
import torch
from tests.conftest import written

from distillery.cluster.signals import Stopped, StopSignal
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.training import answers, build
from distillery.training.answers import folder_of, record_answers
from distillery.training.forecast import Forecast

pytestmark = pytest.mark.slow

KD = "objective: {ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}"


def teach(workplace, teacher, recipe="", objective=KD):
    """Let `taught` learn like this, and `twin` from the live teacher by the same recipe."""
    objective = f"{recipe}, {objective}" if recipe else objective
    workplace.edit(f"teacher: big,\n             {KD}", f"teacher: {teacher}, {objective}")
    workplace.edit(
        "  tables:", f"    twin: {{model: cifar_resnet8, recipe: tiny, teacher: big, {objective}}}\n  tables:"
    )


def record(workplace, run="taught", seed=0, **machine):
    job = workplace.job(run, seed, **machine)
    record_answers(job, StopSignal())
    return folder_of(job)


@pytest.fixture
def taught(workplace):
    workplace.make("big")
    return workplace


BANK = "{run: big, answers: bank}"


MIX = "mix: {mixup: 0.8, cutmix: 1.0, p: 0.9}"


@pytest.mark.parametrize(
    "recipe",
    ["", "repeats: 2", "drop_last: false", "channels_last: true", "selection: best", MIX, f"{MIX}, repeats: 3"],
)
def test_float32_rows_make_the_weights_that_the_live_teacher_makes(taught, recipe):
    teach(taught, BANK, recipe)
    record(taught)
    assert written(taught.make("taught")) == written(taught.make("twin"))


@pytest.mark.parametrize("recipe", ["", MIX])
def test_a_bank_is_as_good_in_micro_batches_and_with_loader_workers(taught, recipe):
    teach(taught, BANK, recipe)
    record(taught, device_batch=4, workers=1)
    assert written(taught.make("taught", device_batch=4, workers=2)) == written(taught.make("twin", device_batch=4))


@pytest.mark.parametrize("extra", ["", "images: labelled, ", "labelled_share: 0.25, "])
def test_few_labels_learn_from_a_bank(taught, extra):
    teach(taught, BANK, objective=f"labels: 12, {extra}{KD}")
    record(taught)
    assert written(taught.make("taught")) == written(taught.make("twin"))


@pytest.mark.parametrize("objective", ["rkd: {}", "crd: {negatives: 8}", "kd: {}, rkd: {weight: 0.1}"])
def test_terms_of_embeddings_learn_from_a_bank(taught, objective):
    teach(taught, BANK, objective=f"objective: {{ce: {{}}, {objective}}}")
    record(taught)
    assert written(taught.make("taught")) == written(taught.make("twin"))


@pytest.mark.parametrize("recipe", ["", MIX])
def test_a_teacher_of_another_size_answers_for_its_own_squares(workplace, recipe):
    workplace.edit("cifar_resnet14, recipe: tiny, seeds", "cifar_resnet14, recipe: tiny, preprocess: {size: 12}, seeds")
    workplace.make("big")
    teach(workplace, BANK, recipe)
    record(workplace)
    assert written(workplace.make("taught")) == written(workplace.make("twin"))


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_stopped_at_any_step_and_continued_ends_with_the_same_bytes(taught, stop_after, monkeypatch, steps):
    teach(taught, BANK)
    record(taught)
    straight = written(taught.make("taught", results="straight"))
    stop_after(steps)
    with pytest.raises(Stopped):
        taught.make("taught")
    monkeypatch.undo()
    assert written(taught.make("taught")) == straight


def test_with_crops_one_bank_serves_all_seeds(taught):
    teach(taught, BANK, "crops: 2")
    folder = record(taught)
    assert record(taught, seed=1) == folder
    assert len(list(folder.glob("*.npy"))) == 2
    first, second = (written(taught.make("taught", seed))["weights.safetensors"] for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("recipe", ["crops: 2", "crops: 3, repeats: 2", "crops: 1, drop_last: false"])
def test_with_crops_other_batches_round_at_most(taught, recipe):
    teach(taught, BANK, recipe)
    record(taught)
    stored, live = (np.genfromtxt(taught.make(run) / "history.csv", delimiter=",") for run in ("taught", "twin"))
    np.testing.assert_allclose(stored, live, rtol=1e-3)


@pytest.mark.parametrize("rows", ["float16", "{top: 2}"])
def test_smaller_rows_teach_much_the_same(taught, rows):
    teach(taught, f"{{run: big, answers: bank, rows: {rows}}}")
    record(taught)
    stored, live = (np.genfromtxt(taught.make(run) / "history.csv", delimiter=",")[1:] for run in ("taught", "twin"))
    np.testing.assert_allclose(stored[:, 2], live[:, 2], rtol=0.05)


def test_the_record_has_the_scores_of_the_teacher(taught):
    teach(taught, BANK)
    record(taught)
    stored, live = (json.loads((taught.make(run) / "run.json").read_text())["teacher"] for run in ("taught", "twin"))
    assert stored == live


def test_a_teacher_whose_answers_are_stored_leaves_the_memory(taught, monkeypatch):
    teach(taught, BANK)
    record(taught)
    seen, restored = [], answers.restored_teacher

    def restore(*arguments):
        run, viewer = restored(*arguments)
        seen.append(weakref.ref(run.network))
        return run, viewer

    monkeypatch.setattr(answers, "restored_teacher", restore)
    monkeypatch.setattr("distillery.training.run.fit", lambda training: (gc.collect(), seen.append(training)))
    with pytest.raises(Exception):  # noqa: B017, PT011  # nothing was trained that could be written
        taught.make("taught")
    network, training = seen
    assert training.teacher is None
    assert network() is None


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(workplace, run="taught", seed=0):
    with pytest.raises(UserError) as error:
        workplace.make(run, seed)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_another_teacher_has_another_bank(taught):
    teach(taught, BANK)
    before = record(taught)
    taught.edit("cifar_resnet14, recipe: tiny, seeds", "cifar_resnet14, recipe: tiny, clip_norm: 0.5, seeds")
    taught.make("big")
    assert record(taught) != before


def test_a_bank_of_other_weights_is_refused(taught):
    teach(taught, BANK)
    folder = record(taught)
    content = json.loads((folder / "bank.json").read_text())
    content["identity"]["weights_sha256"] = "0" * 64
    answers.write_sealed(folder / "bank.json", content)
    assert f"its answers are of other weights; remove {folder}, then: distillery answer" in refused(taught)


@pytest.mark.parametrize("recipe", ["", MIX])
def test_rows_that_are_not_this_teachers_are_refused(taught, recipe):
    teach(taught, BANK, recipe)
    folder = record(taught)
    for path in folder.glob("*.npy"):
        rows = np.load(path)
        np.save(path, rows[::-1])
    assert "holds other rows than were stored; remove" in refused(taught)
    # Older records have no sums.
    content = json.loads((folder / "bank.json").read_text())
    del content["parts_sha256"]
    answers.write_sealed(folder / "bank.json", content)
    line = refused(taught)
    assert "differ by" in line
    assert "distillery answer" in line


@pytest.mark.parametrize("harm", ["cut", "gone", "short", "empty", "of the other part"])
def test_a_bank_that_is_not_whole_is_refused(taught, harm):
    teach(taught, BANK)
    folder = record(taught)
    path = folder / "00001.npy"
    if harm == "gone":
        path.unlink()
    elif harm == "of the other part":
        shutil.copy(folder / "00000.npy", path)
    elif harm == "short":
        np.save(path, np.load(path)[:-1])
    else:
        path.write_bytes(path.read_bytes()[: 0 if harm == "empty" else -100])
    assert str(path) in refused(taught)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("teacher: {run: small, answers: bank}", "its answers are of another bank"),
        ("preprocess: {size: 12}, teacher: {run: big, answers: bank}", "its answers are of another bank"),
        ("teacher: {run: big, answers: bank, rows: float16}", "its answers are of another bank"),
        ("crops: 2, teacher: {run: big, answers: bank}", "its answers are of another bank"),
    ],
)
@pytest.mark.parametrize("record_too", [True, False])
def test_another_bank_in_its_place_is_refused(taught, keys, said, record_too):
    teach(taught, BANK)
    folder = record(taught)
    taught.edit(
        "  tables:", f"    other: {{model: cifar_resnet8, recipe: tiny, {keys}, objective: {{kd: {{}}}}}}\n  tables:"
    )
    if "small" in keys:
        taught.make("small")
    for path in record(taught, "other").iterdir():
        if record_too or path.suffix == ".npy":
            shutil.copy(path, folder)
    line = refused(taught)
    assert str(folder) in line
    assert said in line or not record_too


def test_an_edited_record_is_refused(taught):
    teach(taught, BANK)
    path = record(taught) / "bank.json"
    path.write_text(path.read_text().replace('"parts": 2', '"parts": 1'))
    assert "seal does not fit" in refused(taught)


def test_more_logits_than_classes_are_refused(taught):
    teach(taught, "{run: big, answers: bank, rows: {top: 3}}")
    with pytest.raises(UserError, match=r"tiny\.runs\.taught\.teacher\.rows: top 3 of 3 logits would be all"):
        record(taught)
    assert not [path for path in (taught.results / "work").rglob("*") if path.suffix != ".lock" and path.is_file()]
    with pytest.raises(UserError, match=r"tiny\.runs\.taught\.teacher\.rows: top 3 of 3 logits would be all"):
        assert Forecast(load_experiment(taught.experiment), taught.results, 0).banks


def test_a_full_disk_is_said_before_the_teacher_answers(taught, monkeypatch):
    teach(taught, BANK)
    monkeypatch.setattr(answers.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(UserError, match=r"the bank needs .* GB more, and the disk has 0\.0 GB left"):
        record(taught)


# --- recording ------------------------------------------------------------------------------------------------------


def test_a_stopped_recording_keeps_its_whole_parts_and_continues(taught, monkeypatch):
    teach(taught, BANK)
    encode, calls = answers.RowFormat.encode, []

    def stop_in_the_second_part(self, outputs):
        calls.append(1)
        if len(calls) == 6:  # of 4 batches a part
            signal.raise_signal(signal.SIGTERM)
        return encode(self, outputs)

    monkeypatch.setattr(answers.RowFormat, "encode", stop_in_the_second_part)
    with pytest.raises(Stopped):
        record(taught)
    folder = folder_of(taught.job("taught"))
    assert not folder.exists()
    assert [path.name for path in (taught.results / "work").rglob("*.npy*")] == ["00000.npy"]
    del calls[:]
    monkeypatch.setattr(answers.RowFormat, "encode", lambda self, outputs: (calls.append(1), encode(self, outputs))[1])
    assert record(taught) == folder
    assert len(calls) == 4
    assert not list((taught.results / "work").glob("*"))
    assert written(taught.make("taught")) == written(taught.make("twin"))


def test_a_student_that_finds_no_bank_records_it(taught):
    teach(taught, BANK)
    assert written(taught.make("taught")) == written(taught.make("twin"))
    before = (folder_of(taught.job("taught")) / "bank.json").read_bytes()
    taught.make("taught")
    assert (folder_of(taught.job("taught")) / "bank.json").read_bytes() == before


def test_a_stale_bank_is_recorded_again_when_that_is_asked(taught):
    teach(taught, BANK)
    folder = record(taught)
    content = json.loads((folder / "bank.json").read_text())
    content["identity"]["manifest_digest"] = "0" * 64
    answers.write_sealed(folder / "bank.json", content)
    assert "its answers are to other images" in refused(taught)
    record(taught)
    taught.make("taught")


def test_a_whole_bank_is_not_recorded_again(taught, monkeypatch, capsys):
    teach(taught, BANK)
    folder = record(taught)
    before = (folder / "00000.npy").stat().st_mtime_ns
    record(taught)
    assert (folder / "00000.npy").stat().st_mtime_ns == before
    assert "is whole already" in capsys.readouterr().out


def test_students_of_other_methods_and_networks_share_a_bank(taught):
    teach(taught, BANK)
    wide = "wide: {model: cifar_resnet14, recipe: tiny, teacher: {run: big, answers: bank}, objective: {kd: {}}}"
    taught.edit("  tables:", f"    {wide}\n  tables:")
    assert record(taught) == folder_of(taught.job("wide"))
    assert record(taught) != folder_of(taught.job("wide", 1))
    taught.make("wide")


def test_the_live_teacher_never_teaches_where_a_bank_does(taught, monkeypatch):
    teach(taught, BANK)
    record(taught)
    calls, call = [], build.Teacher.__call__

    def counted(self, images):
        calls.append(len(images))
        return call(self, images)

    monkeypatch.setattr(build.Teacher, "__call__", counted)
    taught.make("taught")
    assert calls == [answers.AUDITED_ROWS * answers.AUDITED_PARTS]
    assert torch.is_grad_enabled()


def test_a_network_without_classifier_answers_once_and_its_squares_are_not_prepared_again(workplace, monkeypatch):
    from distillery.models import create_model
    from distillery.training import inputs

    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
    torch.manual_seed(0)
    torch.save(create_model("vit_tiny_patch16_224", 7, **small).state_dict(), workplace.folder / "vit.pth")
    arguments = ", ".join(f"{key}: {value}" for key, value in small.items())
    giant = f"{{model: vit_tiny_patch16_224, model_args: {{{arguments}}}, weights: {workplace.folder}/vit.pth"
    line = (
        "{{model: cifar_resnet8, recipe: tiny, teacher: {}, objective: {{ce: {{}}, rkd: {{}}, crd: {{negatives: 8}}}}}}"
    )
    workplace.edit(
        "  tables:",
        f"    vit: {giant}, classes: none, preprocess: {{size: 32}}}}\n    live: {line.format('vit')}\n"
        f"    stored: {line.format('{run: vit, answers: bank}')}\n  tables:",
    )
    workplace.make("vit")
    folder = record(workplace, "stored")
    assert np.load(folder / "00000.npy", mmap_mode="r").dtype.itemsize == 4 * 24
    live = written(workplace.make("live"))
    sizes, original = set(), inputs.squares_of
    monkeypatch.setattr(
        inputs, "squares_of", lambda images, seen, device: sizes.add(seen.size) or original(images, seen, device)
    )
    assert written(workplace.make("stored")) == live
    assert sizes == {8}
