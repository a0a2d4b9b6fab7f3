"""Sums of terms, set up and calibrated as in training, against the reference implementations' stored results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.distill.made_up import objective_of

from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name):
    data = np.load(GOLDEN / name, allow_pickle=False)
    return {key: torch.from_numpy(data[key]) for key in data.files if key != "meta"}, json.loads(str(data["meta"]))


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
