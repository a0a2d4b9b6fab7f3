"""The terms as training uses them: set up, calibrated, summed; against the reference implementations' stored results.

B batch, C classes, D features.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distillery.distill.collective import Collective, ProcessGroup
from distillery.distill.losses.overhaul import connector
from distillery.distill.losses.partial_l2 import bn_margin
from distillery.distill.objective import build_objective, check_names
from distillery.distill.step import Labelled, Maps, Outputs, StepInputs, View
from distillery.distill.term import OwnStage, StagePair, TermContext
from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS, Objective
from distillery.models.taps import Features

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name):
    data = np.load(GOLDEN / name, allow_pickle=False)
    return {key: torch.from_numpy(data[key]) for key in data.files if key != "meta"}, json.loads(str(data["meta"]))


def objective_of(terms, context=None):
    return build_objective(Objective.model_validate(terms), context)


def stages_of(data):
    return sorted(int(key.removeprefix("feat_s")) for key in data if key.startswith("feat_s"))


@pytest.mark.parametrize("name", ["amp_kd", "sm_kd", "sp_kd", "amp_ign"])
def test_mgd_end_to_end_equals_the_original(name):
    data, _ = load(f"mgd_multi_{name}.npz")
    stages, batch = stages_of(data), len(data["labels"])
    margins = [data[f"margin{stage}"].reshape(1, -1, 1, 1).double() for stage in stages]
    pairs = [
        StagePair(data[f"feat_s{stage}"].shape[1], data[f"feat_t{stage}"].shape[1], margin)
        for stage, margin in zip(stages, margins, strict=True)
    ]
    options = {"reducer": name.split("_")[0], "compat": "reference", "ignore": (0,) if "ign" in name else ()}
    terms = {"ce": {}, "mgd": options} | ({"kd": {"temperature": 1.5}} if "kd" in name else {})
    objective = objective_of(terms, TermContext(tuple(pairs))).double()

    def calibration_batches(limit):
        assert limit == 20_480
        for half in (slice(0, 1), slice(1, None)):  # unequal parts, as images and not batches are counted
            student, teacher = (tuple(data[f"upd_{side}{stage}"][half] for stage in stages) for side in "st")
            logits_BC = torch.zeros(len(student[0]), 2)
            yield StepInputs(Outputs(logits_BC, student), torch.zeros(0), Outputs(logits_BC, teacher))

    objective.begin_epoch(0, calibration_batches)
    for stage in objective.terms["mgd"].stages:
        flow, found = data[f"flow{stage}"], objective.terms["mgd"].get_buffer(f"flow{stage}")
        flow = flow[: len(found)] if options["reducer"] == "sm" else flow
        groups = flow.reshape(found.shape[1], found.shape[0]).T.sort(dim=1).values
        assert torch.equal(found.sort(dim=1).values, groups)

    features = [data[f"feat_s{stage}"].clone().requires_grad_() for stage in stages]
    logits_BC = data["s_logits"].clone().requires_grad_()
    teacher = Outputs(data["t_logits"], tuple(data[f"feat_t{stage}"] for stage in stages))
    values = objective(StepInputs(Outputs(logits_BC, tuple(features)), data["labels"], teacher))
    torch.testing.assert_close(values["ce"], data["ce"], rtol=1e-9, atol=0)
    torch.testing.assert_close(values["mgd"], data["distill_loss_sum"] / batch / 1e4, rtol=1e-9, atol=0)
    torch.testing.assert_close(values["loss"], data["total"], rtol=1e-9, atol=0)
    values["loss"].backward()
    torch.testing.assert_close(logits_BC.grad, data["grad_s_logits"], rtol=1e-9, atol=1e-15)
    for stage, feature in zip(stages, features, strict=True):
        expected = data[f"grad_feat_s{stage}"]
        found = torch.zeros_like(feature) if feature.grad is None else feature.grad
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-16)


def test_overhaul_equals_the_original():
    data, _ = load("overhaul_4stage.npz")
    stages = stages_of(data)
    pairs = [
        StagePair(
            data[f"feat_s{stage}"].shape[1],
            data[f"feat_t{stage}"].shape[1],
            data[f"margin{stage}"].reshape(1, -1, 1, 1),
        )
        for stage in stages
    ]
    objective = objective_of({"ce": {}, "overhaul": {}}, TermContext(tuple(pairs))).double()
    for stage in stages:
        convolution, norm = objective.terms["overhaul"].connectors[str(stage)]
        convolution.weight.data.copy_(data[f"conv{stage}"])
        norm.weight.data.copy_(data[f"bn_w{stage}"])
        norm.bias.data.copy_(data[f"bn_b{stage}"])
    features = [data[f"feat_s{stage}"].clone().requires_grad_() for stage in stages]
    teacher = Outputs(data["s_logits"], tuple(data[f"feat_t{stage}"] for stage in stages))
    values = objective(StepInputs(Outputs(data["s_logits"], tuple(features)), data["labels"], teacher))
    torch.testing.assert_close(values["loss"], data["total"], rtol=1e-9, atol=0)
    values["loss"].backward()
    for stage, feature in zip(stages, features, strict=True):
        torch.testing.assert_close(feature.grad, data[f"grad_feat_s{stage}"], rtol=1e-8, atol=1e-16)
        weight = objective.terms["overhaul"].connectors[str(stage)][0].weight
        torch.testing.assert_close(weight.grad, data[f"grad_conv{stage}"], rtol=1e-8, atol=1e-16)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("bake_local_*")))
def test_bake_equals_the_original(name):
    data, meta = load(name)
    options = {"omega": meta["omega"], "temperature": meta["T"], "weight": meta["lamda"]}
    objective = objective_of({"ce": {}, "bake": options})
    logits_BC = data["logits"].clone().requires_grad_()
    values = objective(StepInputs(Outputs(logits_BC, embedding_BD=data["feats"]), data["labels"]))
    tolerance = 1e-9 if data["logits"].dtype == torch.float64 else 1e-5
    torch.testing.assert_close(values["bake"], data["kd_loss"], rtol=tolerance, atol=tolerance)
    values["loss"].backward()
    torch.testing.assert_close(logits_BC.grad, data["grad_total_logits"], rtol=tolerance, atol=tolerance)


def networks(batch=4, dtype=torch.float32, scale=1.0):
    """Made-up outputs of a student and a teacher with two stages."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype)

    def outputs(logits_BC, maps, embedding_BD, **once):
        return Outputs(logits_BC, maps, embedding_BD, maps, maps, unpooled=Maps(maps, maps, maps), **once)

    maps = draw(batch, 4, 6, 6).requires_grad_(), draw(batch, 6, 3, 3).requires_grad_()
    student = outputs(
        draw(batch, 5).requires_grad_(),
        maps,
        draw(batch, 7),
        unpaired=(draw(batch, 4, 8, 8), draw(batch, 6, 4, 4)),
        averaged=draw(batch, 7, 3, 5),
        last=draw(batch, 7, 3, 5),
    )
    teacher_maps = draw(batch, 8, 6, 6), draw(batch, 13, 3, 3)
    teacher = outputs(
        draw(batch, 5), teacher_maps, draw(batch, 9), averaged=draw(batch, 9, 4, 2), last=draw(batch, 9, 4, 2)
    )
    margin = bn_margin(draw(8).float(), draw(8).float())
    pairs = (StagePair(4, 8, margin, *[(6, 6)] * 3), StagePair(6, 13, None, *[(3, 3)] * 3))
    torch.manual_seed(2)
    context = TermContext(
        pairs,
        student_features=7,
        teacher_features=9,
        student_classifier=nn.Linear(7, 5),
        teacher_classifier=nn.Linear(9, 5).requires_grad_(False),
        student_stages=(OwnStage(4, (8, 8)), OwnStage(6, (4, 4))),
        student_last=OwnStage(7, (3, 5)),
        teacher_last=OwnStage(9, (4, 2)),
        teacher_map_size=(4, 2),
        labels=np.array([0, 1, 2, 3, 3, 0]),
        classes=5,
        seed=1,
    )
    return student, teacher, context


EVERY_TERM = {name: {} for name in TERMS} | {
    "crd": {"negatives": 2},
    "cat": {"compat": "fixed"},
    "similarity": {"gather": True},  # without it, each process has a queue of its own
}


def prepared(terms, dtype=torch.float32, batch_fraction=1.0, scale=1.0):
    """An objective, set up, and what it is shown in its first step."""
    student, teacher, context = networks(dtype=dtype, scale=scale)
    torch.manual_seed(0)
    objective = objective_of(terms, context)
    for _, term in objective.each():
        if (head := term.head(context)) is not None:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                student = student._replace(head=head(Features(averaged=student.averaged.float()))[1].to(dtype))
    target = torch.tensor([0, 1, 2, 3])
    objective.begin_epoch(0, lambda limit: [StepInputs(student, target, teacher)])
    indices = torch.tensor([0, 4, 1, 2])
    view = View(Outputs(student.logits_BC.detach().flip(0)), Outputs(teacher.logits_BC.flip(0)))
    return objective, StepInputs(student, target, teacher, batch_fraction, indices_B=indices, view=view)


def computed(terms, dtype=torch.float32, batch_fraction=1.0):
    objective, inputs = prepared(terms, dtype, batch_fraction)
    return inputs.student, objective, objective(inputs)


def learned(objective, inputs):
    """All that a step may have a gradient for: the student's outputs, and what the terms train."""
    found = {}
    for outputs in (inputs.student, inputs.view.student):
        outputs.each(lambda tensor: found.setdefault(id(tensor), tensor))
    leaves = [*found.values(), *objective.parameters()]
    return [leaf.requires_grad_() for leaf in leaves if leaf.is_leaf]


def test_every_registered_term_has_its_options_and_the_other_way_round():
    assert set(TERMS) == set(Objective.model_fields)


def test_any_sum_of_terms_is_legal():
    student, _, values = computed({name: options | {"weight": 0.5} for name, options in EVERY_TERM.items()})
    total = sum(0.5 * value for name, value in values.items() if name != "loss")
    assert {name: value for name, value in values.items() if not value.isfinite()} == {}
    torch.testing.assert_close(values["loss"], total)
    values["loss"].backward()
    for tensor in (student.logits_BC, *student.stages):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("term", EVERY_TERM)
def test_terms_compute_in_float32_whatever_autocast_does(term):
    _, _, plain = computed({term: {}})
    with torch.autocast("cpu", torch.bfloat16):
        _student, _, values = computed({term: {}})
    assert values[term].dtype == torch.float32
    torch.testing.assert_close(values[term], plain[term], rtol=1e-6, atol=1e-7)
    _, _, half = computed({term: {}}, dtype=torch.bfloat16)
    torch.testing.assert_close(half[term], plain[term], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("term", EVERY_TERM)
def test_answers_of_ten_thousand_stay_finite_under_autocast(term, dtype):
    objective, inputs = prepared({term: EVERY_TERM[term]}, dtype, scale=1e4)
    leaves = learned(objective, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        value = objective(inputs)["loss"]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("term", EVERY_TERM)
def test_one_image_of_one_pixel_is_learned_from_or_refused_in_one_line(term):
    objective, inputs = prepared({term: EVERY_TERM[term]})

    def one(outputs):
        return outputs.each(lambda tensor: tensor[:1, :, :1, :1] if tensor.ndim == 4 else tensor[:1])

    view = View(one(inputs.view.student), one(inputs.view.teacher))
    inputs = StepInputs(
        one(inputs.student), inputs.target[:1], one(inputs.teacher), indices_B=inputs.indices_B[:1], view=view
    )
    try:
        assert objective(inputs)["loss"].isfinite()
    except UserError as error:
        assert re.fullmatch(r"(objective\.\w+|batch): .*; raise `batch`, or set `drop_last: true`", str(error))  # noqa: PT017


class Constants(TorchFunctionMode):
    """Gives what is detached, or computed without gradient, as it was at first, so that no difference sees it move."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __enter__(self):
        self.turn = iter(list(self.kept))
        return super().__enter__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        constant = function is Tensor.detach or not torch.is_grad_enabled()
        if not constant or not isinstance(result, Tensor):
            return result
        first = next(self.turn, None)
        if first is None:
            self.kept.append(first := result.clone())
        return first


@pytest.mark.parametrize("term", EVERY_TERM)
def test_the_gradient_of_every_term_is_its_derivative(term):
    objective, inputs = prepared({term: EVERY_TERM[term]}, torch.float64)
    objective.double()
    leaves, constants = learned(objective, inputs), Constants()
    objective(inputs)  # what a run's first batch sets, it sets here

    def value():
        with constants:
            return objective(inputs)["loss"]

    first = value()
    gradients = torch.autograd.grad(first, leaves, allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    generator = torch.Generator().manual_seed(0)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction, step = torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator), 1e-6
        values = []
        for side in (1, -1):
            leaf.data += side * step * direction
            values.append(value())
            leaf.data -= side * step * direction
        slope = 0.0 if gradient is None else (gradient * direction).sum().item()
        found = (values[0] - values[1]).item() / (2 * step)
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-8 * abs(first.item()) + 1e-12), leaf.shape


class Watched(Collective):
    """Remembers whether it was asked for anything."""

    asked = False

    def __getattribute__(self, name):
        if not name.startswith("_") and name != "asked":
            self.asked = True
        return super().__getattribute__(name)


def two_steps(term, collective, part):
    """What a term remembers after two epochs of one step, and the sum of its values over a part of the images.

    The sum is None where a batch norm, which sees a process's own images, has a say in it.
    """
    student, teacher, context = networks(batch=12)
    student, teacher = student.only(part), teacher.only(part)
    torch.manual_seed(0)
    objective = objective_of(
        {term: EVERY_TERM[term]}, replace(context, collective=collective, labels=np.arange(14) % 5, epochs=2)
    )
    total, indices = 0.0, torch.arange(12)[part] + 1
    for epoch in range(2):
        view = View(student, teacher)
        inputs = StepInputs(student, indices % 5, teacher, epoch=epoch, indices_B=indices, view=view)
        objective.begin_epoch(epoch, lambda limit: [inputs])  # noqa: B023
        total += objective(inputs)["loss"].item() * len(indices)
        objective.end_step()
        student = student.each(lambda tensor: -tensor.roll(1, -1))
    norms = [name for name, module in objective.named_modules() if isinstance(module, nn.BatchNorm2d)]
    remembered = {name: value for name, value in objective.named_buffers() if name.rpartition(".")[0] not in norms}
    return remembered, None if norms else total


PARTS = [slice(0, 1), slice(1, 5), slice(5, 9), slice(9, 12)]


def _as_one(rank, expected):
    for term, (remembered, total) in expected.items():
        found, own = two_steps(term, ProcessGroup(), PARTS[rank])
        for name, value in remembered.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=f"{term}: {name}")
        own = ProcessGroup().all_reduce(torch.tensor(own or 0.0)).item()
        assert total is None or own == pytest.approx(total, rel=1e-5), term


@pytest.mark.slow
def test_four_processes_are_one_for_every_term_that_talks_to_the_others(in_processes):
    expected = {}
    for term in TERMS:
        if TERMS[term].head is None:
            watched = Watched()
            found = two_steps(term, watched, slice(0, 12))
            expected |= {term: found} if watched.asked else {}
    assert set(expected) >= {"bake", "crd", "mgd", "pskd"}
    in_processes(_as_one, 4, expected)


def test_the_flow_is_found_when_it_is_due_and_kept_with_the_state():
    student, teacher, context = networks()
    objective = objective_of({"mgd": {"update_every": 2}}, context)
    inputs = StepInputs(student, torch.zeros(4, dtype=torch.long), teacher)
    asked = []

    def calibration_batches(limit):
        asked.append(limit)
        return [inputs]

    for epoch in range(4):
        objective.begin_epoch(epoch, calibration_batches)
    assert len(asked) == 2
    again = objective_of({"mgd": {}}, context)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.terms["mgd"].flow0, objective.terms["mgd"].flow0)
    torch.testing.assert_close(again(inputs)["loss"], objective(inputs)["loss"])


def test_a_process_without_labelled_images_still_has_a_gradient_for_all_that_a_term_trains():
    student, teacher, context = networks()
    objective = objective_of({"ofa": {}}, context)
    none = Labelled(torch.zeros(0, dtype=torch.long), 1.0)
    values = objective(StepInputs(student, torch.zeros(4, dtype=torch.long), teacher, labelled=none))
    values["loss"].backward()
    assert values["loss"] == 0
    assert all(value.grad is not None and not value.grad.any() for value in objective.parameters())


def test_a_weight_may_rise_over_the_first_epochs():
    student, teacher, context = networks()
    options = {"ce": {"weight": 0.5}, "kd": {"weight": {"value": 3, "warmup": 4}}}
    objective = objective_of(options, context)
    for epoch, weight in ((0.0, 0.75), (0.9, 0.75), (1.0, 1.5), (3.0, 3.0), (200.5, 3.0)):
        values = objective(StepInputs(student, torch.tensor([0, 1, 2, 3]), teacher, epoch=epoch))
        torch.testing.assert_close(values["loss"], 0.5 * values["ce"] + weight * values["kd"])


def test_a_weight_may_begin_with_none():
    options = Objective.model_validate({"kd": {"weight": {"value": 3, "warmup": 4, "from_zero": True}}}).kd
    assert [options.weight_at(epoch) for epoch in (0, 1, 4, 9)] == [0, 0.75, 3, 3]


def test_margins_come_from_the_loaded_teacher_not_from_a_checkpoint():
    _, _, context = networks()
    objective = objective_of({"mgd": {}, "overhaul": {}}, context)
    assert not [key for key in objective.state_dict() if "margin" in key]


def test_a_smaller_last_batch_weighs_less_only_in_reference_mode():
    _, _, whole = computed({"mgd": {"compat": "reference"}})
    _, _, part = computed({"mgd": {"compat": "reference"}}, batch_fraction=0.5)
    torch.testing.assert_close(part["mgd"], whole["mgd"] / 2)
    _, _, whole = computed({"mgd": {}})
    _, _, part = computed({"mgd": {}}, batch_fraction=0.5)
    torch.testing.assert_close(part["mgd"], whole["mgd"])


@pytest.mark.parametrize("term", ["mgd", "overhaul"])
def test_the_mean_does_not_depend_on_the_resolution(term):
    student, teacher, context = networks()
    torch.manual_seed(0)
    objective = objective_of({term: {"normalize": "mean"}}, context)

    def enlarge(outputs):
        return Outputs(outputs.logits_BC, tuple(map(nn.UpsamplingNearest2d(scale_factor=2), outputs.stages)))

    target = torch.zeros(4, dtype=torch.long)
    objective.begin_epoch(0, lambda limit: [StepInputs(student, target, teacher)])
    small = objective(StepInputs(student, target, teacher))["loss"]
    large = objective(StepInputs(enlarge(student), target, enlarge(teacher)))["loss"]
    torch.testing.assert_close(small, large, rtol=1e-4, atol=0)


@pytest.mark.parametrize("term", ["mgd", "overhaul", "at", "nst", "vid"])
@pytest.mark.parametrize(
    ("ignore", "message"), [((2,), "no stage 2; the networks have 2"), ((0, 1), "leaves no stage")]
)
def test_ignoring_what_is_not_there_or_everything_is_refused(term, ignore, message):
    _, _, context = networks()
    with pytest.raises(UserError, match=message):
        objective_of({term: {"ignore": ignore}}, context)


def test_ignored_stages_keep_their_place_in_the_weights():
    _student, _, both = computed({"overhaul": {}})
    _, objective, last = computed({"overhaul": {"ignore": [0]}})
    assert objective.terms["overhaul"].weights == [0.5, 1.0]
    assert last["overhaul"] < both["overhaul"]


def test_a_connector_starts_as_the_original_does():
    torch.manual_seed(0)
    convolution, norm = connector(64, 256)
    assert convolution.bias is None
    assert convolution.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert (norm.weight == 1).all()


LOGIT_TERMS = [name for name, options in TERMS.items() if options.takes_some_classes]


@pytest.mark.parametrize("term", LOGIT_TERMS)
def test_of_a_teacher_that_knows_some_classes_only_these_are_compared(term):
    """As on a data set of these classes; where the term learns from labels, by their images alone."""
    known, by_label = [0, 2, 3, 5], TERMS[term].needs.labels
    student_BC, teacher_BC = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student_BC = student_BC.requires_grad_()
    teacher_BC[:, [1, 4, 6]] = -1000.0
    target_B = torch.tensor([0, 1, 2, 3, 5, 6])
    objective = build_objective(Objective.model_validate({term: {}}), None, {None: known})
    value = objective(StepInputs(Outputs(student_BC), target_B, Outputs(teacher_BC)))[term]
    rows = torch.tensor([0, 2, 3, 4]) if by_label else torch.arange(6)
    alone = [Outputs(logits_BC[rows][:, known]) for logits_BC in (student_BC, teacher_BC)]
    wanted = objective_of({term: {}})(StepInputs(alone[0], torch.tensor([0, 1, 2, 3]), alone[1]))[term]
    torch.testing.assert_close(value, wanted * len(rows) / 6)
    value.backward()
    assert (student_BC.grad[:, [1, 4, 6]] == 0).all()


def test_a_batch_of_unknown_classes_alone_gives_a_term_of_labels_nothing_and_mixed_targets_their_known_part():
    objective = build_objective(Objective.model_validate({"dkd": {}}), None, {None: [0, 2]})
    student_BC = torch.randn(2, 4, requires_grad=True)
    teacher = Outputs(torch.randn(2, 4))
    assert objective(StepInputs(Outputs(student_BC), torch.tensor([1, 3]), teacher))["dkd"] == 0
    mixed_BC = torch.tensor([[0.25, 0.5, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]])
    among = StepInputs(Outputs(student_BC), mixed_BC, teacher).among(torch.tensor([0, 2]))
    assert among.target.tolist() == [[0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("name", ["half", "keys", "train"])
def test_a_term_that_is_called_as_a_part_of_torch_is_refused_in_one_line(name):
    class Config:
        def terms(self):
            return {name: None}

    with pytest.raises(UserError, match=f"^objective\\.{name}: torch keeps this name to itself"):
        check_names(Config())
    assert not [term for term in EVERY_TERM if hasattr(torch.nn.ModuleDict, term)]
