"""The terms of logits against what their authors' code computed: a check for each method of tests/golden-zoo.

``CHECKS[method](stored, meta)`` takes a file's arrays and its hyper-parameters.
"""

import re

import torch

from distillery.distill.objective import build_objective
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext
from distillery.experiment.schema.objective import Objective


def close(found, stored, what):
    """Assert equality to 1e-9 of the largest stored number, or of 1e-4 where all are smaller."""
    found, stored = torch.as_tensor(found).detach().double(), stored.double()
    assert found.shape == stored.shape, what
    if stored.numel():
        distance, scale = (found - stored).abs().max().item(), max(stored.abs().max().item(), 1e-4)
        assert distance <= 1e-9 * scale, f"{what}: {distance:.1e} of {scale:.1e}"


class Case:
    """A term on a file's logits: its value, gradients and state; ``expect`` compares."""

    def __init__(self, stored, terms, target, epoch=0.0, context=None, **student):
        self.stored = stored
        self.objective = build_objective(Objective.model_validate(terms), context).double()
        self.logits = stored["logits_s"].clone().requires_grad_()
        teacher = Outputs(stored["logits_t"]) if "logits_t" in stored else None
        self.inputs = StepInputs(Outputs(self.logits, **student), stored.get(target), teacher, epoch=epoch)

    def expect(self, key="loss", value="loss", gradient="grad.logits_s"):
        self.logits.grad = None
        values = self.objective(self.inputs)
        values["loss"].backward()
        close(values[value], self.stored[key], key)
        close(self.logits.grad, self.stored[gradient], gradient)
        return values

    def value(self):
        """The objective's value alone."""
        return self.objective(self.inputs)["loss"]


def options(meta, *names):
    return {name: meta[name] for name in names}


def check_kd_standardized(stored, meta):
    Case(stored, {"kd": {"standardize": True} | options(meta, "temperature")}, "labels").expect()


def check_ctkd(stored, meta):
    span = {"lowest": meta["t_start"], "span": meta["t_end"]}
    # Its schedule's end stands in for the one factor that the file was made with.
    settings = {"name": "learned", **span, "reversal": -meta["lam"], "epochs": 1}
    case = Case(stored, {"kd": {"temperature": settings}}, "labels")
    temperature = case.objective.terms["kd"].temperature
    temperature.parameter.data.copy_(stored["parameter"])
    close(temperature(0.0), stored["temperature"].squeeze(), "temperature")
    case.expect()
    close(temperature.parameter.grad, stored["grad.parameter"], "grad.parameter")
    if "lambda_by_epoch" in stored:
        start, end, epochs = map(int, re.findall(r"CosineDecay\((-?\d+), (-?\d+), (\d+)\)", meta["source"])[0])
        assert start == 0
        settings |= {"reversal": -end, "epochs": epochs}
        term = Case(stored, {"kd": {"temperature": settings}}, "labels").objective.terms["kd"].temperature
        slopes = []
        for epoch in range(len(stored["lambda_by_epoch"]) - 1):
            term.parameter.data.zero_()
            (slope,) = torch.autograd.grad(term(float(epoch)), term.parameter)
            slopes.append(slope * 4 / meta["t_end"])  # of the sigmoid, 1/4 at 0
        close(torch.cat(slopes), stored["lambda_by_epoch"][1:], "lambda_by_epoch")


def check_dkd(stored, meta, **more):
    weights = options(meta, "temperature", "alpha", "beta")
    Case(stored, {"dkd": weights | more}, "labels").expect()
    for part, alone in (("tckd", {"alpha": 1, "beta": 0}), ("nckd", {"alpha": 0, "beta": 1})):
        if part in stored:
            close(Case(stored, {"dkd": weights | alone}, "labels").value(), stored[part], part)


def check_dkd_standardized(stored, meta):
    check_dkd(stored, meta, standardize=True)


def check_nkd(stored, meta):
    settings = options(meta, "temperature", "gamma")
    assert stored["target"].ndim == 1 + meta["soft_target"]
    Case(stored, {"nkd": settings}, "target").expect()
    if "target_term" in stored:
        found = Case(stored, {"nkd": settings | {"gamma": 0}}, "target").value()
        close(found, stored["target_term"], "target_term")


def check_dist(stored, meta):
    settings = {"temperature": meta["tau"]} | options(meta, "beta", "gamma")
    Case(stored, {"dist": settings}, "labels").expect()
    for part, alone in (("inter", {"beta": 1, "gamma": 0}), ("intra", {"beta": 0, "gamma": 1})):
        if part in stored:
            close(Case(stored, {"dist": settings | alone}, "labels").value(), stored[part], part)


def check_wttm(stored, meta):
    settings = options(meta, "gamma")
    Case(stored, {"wttm": settings}, "labels").expect()
    Case(stored, {"wttm": settings | {"weighted": False}}, "labels").expect("ttm", gradient="grad_ttm.logits_s")


def check_wsld(stored, meta):
    soft = {"weight": meta["alpha"]} | options(meta, "temperature")
    case = Case(stored, {"ce": {}, "wsld": soft}, "labels")
    close(case.expect()["ce"], stored["ce"], "ce")


def check_uskd(stored, meta):
    settings = options(meta, "alpha", "beta", "mu") | {"compat": "reference", "stage": 0}
    middle = stored["feat_mid"][:, :, None, None].clone().requires_grad_()
    classes = stored["logits_s"].shape[1]
    context = TermContext((StagePair(middle.shape[1], 0, None),), classes=classes)
    case = Case(stored, {"uskd": settings}, "labels", context=context, activations=(middle,))
    weak = case.objective.terms["uskd"].weak
    for name, parameter in weak.named_parameters():
        parameter.data.copy_(stored[f"p.fc.{name}"])
    case.expect()
    close(middle.grad[:, :, 0, 0], stored["grad.feat_mid"], "grad.feat_mid")
    for name, parameter in weak.named_parameters():
        close(parameter.grad, stored[f"grad.p.fc.{name}"], f"grad.p.fc.{name}")


CHECKS = {
    "kd+logit_standardization": check_kd_standardized,
    "ctkd": check_ctkd,
    "dkd": check_dkd,
    "dkd+logit_standardization": check_dkd_standardized,
    "nkd": check_nkd,
    "dist": check_dist,
    "wttm": check_wttm,
    "wsld": check_wsld,
    "uskd": check_uskd,
}
