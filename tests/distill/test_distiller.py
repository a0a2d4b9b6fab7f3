"""The objective as one module in somebody else's loop."""

import copy
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from distillery import Distiller, create_model
from distillery.cluster.signals import StopSignal
from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS
from distillery.training.build import build_training
from distillery.training.run import start

SIZE, CLASSES, IMAGES = 16, 5, 24
OPTIONS = {"crd": {"negatives": 7}, "bake": {"partners": 0}}
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:distiller. a term wants")]


def networks():
    torch.manual_seed(0)
    return create_model("cifar_resnet8", CLASSES), create_model("cifar_resnet14", CLASSES)


def made(*terms, **options):
    student, teacher = networks()
    objective = {name: OPTIONS.get(name, {}) for name in terms}
    learns = any(TERMS[name].needs.teacher for name in terms)
    options = {"size": SIZE, "epochs": 2, "train_labels": np.arange(IMAGES) // 2 % CLASSES} | options
    return Distiller(student, teacher if learns else None, objective, **options)


def batch(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator), torch.arange(count) // 2 % CLASSES


def extras(distiller, count=6):
    wanted = {"indices": torch.arange(count)} if distiller.needs.indices else {}
    return wanted | ({"view": batch(count, 2)[0]} if distiller.needs.view or distiller.needs.partner else {})


@pytest.mark.slow
@pytest.mark.parametrize("term", TERMS)
def test_every_term_trains_and_goes_on_from_its_state(term):
    first, again = made("ce", term), made("ce", term)
    images, labels = batch()

    def step(distiller, optimizer):
        optimizer.zero_grad()
        loss = distiller(images, labels, **extras(distiller))
        loss.backward()
        optimizer.step()
        return loss.detach()

    before = step(first, optimizer := torch.optim.SGD(first.parameters(), lr=0.01))
    again.load_state_dict(first.state_dict())
    assert before.isfinite()
    other = torch.optim.SGD(again.parameters(), lr=0.01)
    assert torch.equal(step(first, optimizer), step(again, other))
    for ours, theirs in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        "{ce: {weight: 0.5}, kd: {weight: {value: 0.5, warmup: 2}}}",
        "{ce: {}, mgd: {}, overhaul: {}}",
        "{ce: {}, crd: {negatives: 7}}",
        "{ce: {}, simkd: {}}",
    ],
)
def test_its_loss_and_gradients_are_those_of_a_run(workplace, objective):
    workplace.edit("objective: {ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}", f"objective: {objective}")
    workplace.make("big")
    job = workplace.job("taught")
    fabric = start(job, job.spec.recipe)
    training = build_training(job, job.spec.recipe, fabric, StopSignal(), time.monotonic())
    training.bare.objective.begin_epoch(0, training.calibration_batches(0))
    training.learner.train()
    training.batches.start(0, 0)
    shown = next(iter(training.train_loader))
    normalised = training.bare.normalize(shown.images)
    student = create_model("cifar_resnet8", 3)
    distiller = Distiller(
        student,
        copy.deepcopy(training.teacher.extractor.network),
        job.spec.objective,
        size=8,
        train_labels=np.arange(36) // 12,
        seed=job.seed,
    )
    distiller.learner.load_state_dict(training.bare.state_dict())
    distiller.begun = True  # matched by the run
    indices = shown.indices if distiller.needs.indices else None
    teacher = training.teacher(shown.images)
    values, logits_BC = training.learner(shown.images, shown.labels, teacher, 1.0, 0.0, shown.indices)
    fabric.backward(values["loss"])
    loss = distiller(normalised, shown.labels, indices=indices)
    # A teacher brings statistics of its own; here both are those of the data set.
    assert torch.equal(training.teacher.extractor.normalize(shown.images), normalised)
    loss.backward()
    assert torch.equal(loss, values["loss"])
    assert torch.equal(distiller.logits, logits_BC.detach())
    for name, value in distiller.values.items():
        assert torch.equal(value, values[name].detach())
    theirs = dict(training.bare.named_parameters())
    for name, weight in distiller.learner.named_parameters():
        assert (weight.grad is None) == (theirs[name].grad is None)
        assert weight.grad is None or torch.equal(weight.grad, theirs[name].grad)


def test_parameters_and_state_are_the_students_and_the_terms():
    distiller = made("ce", "fitnet")
    own = {*distiller.student.parameters(), *distiller.learner.objective.parameters()}
    assert set(distiller.parameters()) == own
    assert len(own) > len(list(distiller.student.parameters()))
    assert not any("teacher" in name for name in distiller.state_dict())
    assert not {*distiller.teacher.extractor.network.parameters()} & own
    assert not any(weight.requires_grad for weight in distiller.teacher.extractor.network.parameters())


def test_a_head_is_deployed_with_the_student():
    distiller = made("ce", "simkd")
    distiller(*batch()).backward()
    assert distiller.student.eval()(batch()[0]).shape == (6, CLASSES)
    assert any(name.startswith("learner.student.head.") for name in distiller.state_dict())


@pytest.mark.parametrize(
    ("term", "norm", "trains"), [("kd", None, False), ("overhaul", None, True), ("kd", "batch", True)]
)
def test_training_mode_reaches_the_teacher_only_where_a_term_wants_it(term, norm, trains):
    distiller = made("ce", term, teacher_norm=norm)

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.distiller, self.teacher = distiller, distiller.teacher.extractor.network

    Holder().train()
    network = distiller.teacher.extractor.network
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
    distiller(*batch())
    assert not network.training
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {module.training for module in norms} == {trains}
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_the_teacher_moves_and_widens_along_and_sees_what_is_prepared_for_it():
    seen = []
    distiller = made("ce", "kd", prepare_teacher=lambda images: seen.append(images) or images * 2)
    distiller.double()
    weights = {weight.dtype for weight in distiller.teacher.extractor.network.parameters()}
    images, labels = batch()
    distiller(images.double(), labels)
    assert weights == {torch.float64}
    assert len(seen) == 1
    assert distiller.to("meta").teacher.extractor.network.fc.weight.device.type == "meta"


def test_a_teacher_of_another_size_is_shown_it():
    enlarge = lambda images: nn.functional.interpolate(images, 32)  # noqa: E731
    distiller = made("ce", "mgd", teacher_size=32, prepare_teacher=enlarge)
    assert distiller(*batch()).isfinite()


def test_channels_are_matched_when_an_epoch_begins():
    distiller = made("ce", "mgd")
    loader = [batch(8, seed) for seed in range(3)]
    distiller.begin_epoch(0, loader)
    flow = distiller.learner.objective.terms["mgd"].get_buffer("flow0").clone()
    assert flow.any()
    assert distiller.training
    assert distiller.begun
    distiller(*batch())
    assert torch.equal(distiller.learner.objective.terms["mgd"].get_buffer("flow0"), flow)


@pytest.mark.filterwarnings("default:distiller. a term wants")
def test_without_images_a_batch_stands_in_and_that_is_said():
    distiller = made("ce", "mgd")
    with pytest.warns(UserWarning, match="wants to see 20,480 training images now, and sees this batch of 6"):
        distiller(*batch())
    assert distiller.learner.objective.terms["mgd"].get_buffer("flow0").any()


def test_weights_follow_the_epoch():
    distiller = made("ce")
    student, teacher = networks()
    distiller = Distiller(
        student, teacher, {"ce": {"weight": 0}, "kd": {"weight": {"value": 1, "warmup": 4}}}, size=SIZE
    )
    shares = []
    for epoch in (0, 3):
        distiller.begin_epoch(epoch)
        loss = distiller(*batch())
        shares.append((loss / distiller.values["kd"]).item())
    assert shares == pytest.approx([0.25, 1])


def test_memories_wait_for_the_optimizer_step():
    distiller = made("ce", "crd")
    memory = distiller.learner.objective.terms["crd"].get_buffer("memory_s")
    before = memory.clone()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    for first in (0, 6):  # two micro-batches
        distiller(*batch(), indices=torch.arange(first, first + 6)).backward()
    foreign.step()
    assert torch.equal(memory, before)
    optimizer.step()
    changed = (memory != before).any(dim=1)
    assert changed.tolist() == [True] * 12 + [False] * 12
    optimizer.step()  # without a batch in between


def test_evaluation_leaves_memories_alone():
    distiller = made("ce", "crd")
    with pytest.raises(UserError, match=r"in evaluation crd has no value"):
        distiller.eval()(*batch(), indices=torch.arange(6))
    plain = made("ce", "kd").eval()
    with torch.no_grad():
        assert torch.equal(plain(*batch()), plain(*batch()))


def test_soft_labels_and_none():
    images, labels = batch()
    soft = nn.functional.one_hot(labels, CLASSES).float()
    torch.testing.assert_close(made("ce")(images, soft), made("ce")(images, labels))
    assert made("kd")(images).isfinite()
    assert made("ce")(images, labels.int()).isfinite()


@pytest.mark.parametrize(
    ("terms", "options", "line"),
    [
        ({"mdg": {}}, {}, "objective: mdg: unknown key 'mdg'; did you mean 'mgd'"),
        ({"mgd": {"reducr": "sm"}}, {}, "objective: mgd.reducr: unknown key 'reducr'; did you mean 'reducer'"),
        ({}, {}, "an objective needs at least one term"),
        ({"ce": {}, "kd": {}}, {"teacher": None}, "teacher: missing; the objective's term 'kd'"),
        ({"ce": {}}, {}, "teacher: no term of the objective uses it"),
        ({"simkd": {}, "cat": {}}, {}, "each replace the student's last layer"),
        ({"ce": {}, "kd": {"teacher": "big"}}, {}, "objective.kd.teacher: there is no choice of teachers here"),
        ({"ce": {}, "bake": {}, "kd": {}}, {}, "objective.bake.partners: 1 needs Distillery's order"),
        ({"pskd": {}, "kd": {}}, {"train_labels": [0, 1]}, "epochs: missing; pskd changes"),
        ({"ce": {}, "crd": {}}, {}, "train_labels: missing; crd knows every training image"),
        ({"ce": {}, "crd": {}}, {"train_labels": [0, 7]}, "train_labels: the largest is 7"),
        ({"ce": {}, "kd": {}}, {"teacher": create_model("cifar_resnet8", 3)}, "it has 3 classes, and the student 5"),
        ({"ce": {}, "kd": {}}, {"teacher": "resnet50"}, "teacher: expected a torch.nn.Module, found str"),
        ({"ce": {}, "kd": {}}, {"size": 2, "teacher": create_model("timm:test_vit", CLASSES)}, "cannot take images of"),
    ],
)
def test_what_does_not_fit_together_is_one_line(terms, options, line):
    student, teacher = networks()
    options = {"teacher": teacher, "size": SIZE} | options
    with pytest.raises(UserError) as raised:
        Distiller(student, options.pop("teacher"), terms, **options)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_student_does_not_teach_itself():
    student, _ = networks()
    with pytest.raises(UserError, match="shares weights with the student"):
        Distiller(student, student, {"ce": {}, "kd": {}}, size=SIZE)


IMAGES_B, LABELS_B = batch()


@pytest.mark.parametrize(
    ("terms", "given", "line"),
    [
        (["ce"], {"labels": None}, "labels: missing; ce learns from labels"),
        (["ce"], {"labels": [0, 1]}, "labels: list; expected class indices (6,) or soft labels (6, 5)"),
        (["ce"], {"labels": LABELS_B[:3]}, r"labels: torch.int64 (3,); expected"),
        (["ce"], {"labels": LABELS_B.float()}, "labels: torch.float32 (6,); expected"),
        (["ce"], {"labels": LABELS_B.bool()}, "labels: torch.bool (6,); expected"),
        (["ce"], {"labels": torch.zeros(6, 4)}, "labels: torch.float32 (6, 4); expected"),
        (["ce"], {"labels": LABELS_B + 3}, "labels: from 3 to 5, but there are 5 classes"),
        (["ce"], {"labels": LABELS_B - 1}, "labels: from -1 to"),
        (["ce"], {"labels": LABELS_B.to("meta")}, "labels: on meta, but the student is on cpu; move the batch"),
        (["ce"], {"images": IMAGES_B.to("meta")}, "images: on meta, but the student is on cpu"),
        (["ce"], {"images": (IMAGES_B * 255).byte()}, "images: torch.uint8 (6, 3, 16, 16); expected floats"),
        (["ce"], {"images": IMAGES_B[0]}, "images: torch.float32 (3, 16, 16); expected floats"),
        (["ce", "kd"], {"indices": torch.arange(6)}, "indices: no term of the objective looks at it"),
        (["ce", "masked_generative"], {}, "indices: missing; a term needs each image's position"),
        (["ce", "crd"], {"indices": torch.arange(6) + 20}, "indices: from 20 to 25, but there are 24 of"),
        (["ce", "crd"], {"indices": torch.arange(5)}, "indices: torch.int64 (5,); expected"),
        (["pskd"], {"indices": torch.arange(6), "labels": torch.ones(6, 5) / 5}, "pskd looks at single images"),
        (["mlkd"], {}, "view: missing; a term needs another augmentation"),
        (["cskd"], {}, "view: missing; a term needs other images of the same classes"),
        (["mlkd"], {"view": IMAGES_B[:2]}, "view: torch.float32 (2, 3, 16, 16); expected"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_line(terms, given, line):
    distiller = made(*terms)
    given = {"images": IMAGES_B, "labels": LABELS_B} | given
    with pytest.raises(UserError) as raised:
        distiller(given.pop("images"), given.pop("labels"), **given)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_images_of_another_size_are_refused_where_features_are_taken():
    with pytest.raises(UserError, match="plan the taps for the size"):
        made("ce", "mgd")(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))


def _train_in_parallel(rank, folder):
    torch.set_num_threads(1)
    # The module is built first, as trainers do that start their processes themselves.
    distiller = made("ce", "mgd", "crd")
    dist.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    wrapped = nn.parallel.DistributedDataParallel(distiller)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    for step in range(2):
        images, labels = batch(4, seed=10 * step + rank)
        wrapped(images, labels, indices=torch.arange(4) + 4 * rank + 8 * step).backward()
        optimizer.step()
        optimizer.zero_grad()
    running = {name: value for name, value in distiller.state_dict().items() if "running" not in name}
    torch.save({name: value for name, value in running.items() if "num_batches" not in name}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_keep_one_student_one_flow_and_one_memory(tmp_path):
    torch.multiprocessing.start_processes(_train_in_parallel, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert any("memory_s" in name for name in first)
    assert any("flow" in name for name in first)
