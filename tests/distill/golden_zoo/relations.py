"""How the authors' files of relations between images, of contrast and of self-distillation are checked."""

from unittest.mock import patch

import numpy as np
import torch

from distillery.distill.losses import rkd
from distillery.distill.losses.cc import CC
from distillery.distill.losses.crd import CRD
from distillery.distill.losses.pkt import pkt_loss
from distillery.distill.losses.rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import TermContext
from distillery.experiment.schema.objective import KDOptions


def close(found, expected, name):
    assert found.shape == expected.shape, name
    distance, allowed = (found - expected).abs().max(), 1e-9 * expected.abs().max().clamp_min(1e-4)
    assert distance <= allowed, f"{name}: {distance:.2e} off, {allowed:.2e} allowed"


def check_rkd(stored, meta):
    losses = {
        "distance": rkd_distance_loss,
        "angle": rkd_angle_loss,
        "feat_s": lambda *both: rkd_loss(*both, meta["w_distance"], meta["w_angle"]),
    }
    for piece in (rkd.PIECE, 1, 500):  # however many pieces the angles are computed in
        for part, function in losses.items():
            student = stored["feat_s"].clone().requires_grad_()
            with patch.object(rkd, "PIECE", piece):
                value = function(student, stored["feat_t"])
                value.backward()
            close(value, stored["loss" if part == "feat_s" else part], part)
            close(student.grad, stored[f"grad.{part}"], f"grad.{part}")


def check_crd(stored, meta):
    for parts in (1, 2):
        check_crd_steps(stored, meta, parts)


def check_crd_steps(stored, meta, parts):
    """The steps, each in so many micro-batches."""
    widths = {side: stored[f"feat_{side}0"].shape[1] for side in "st"}
    term = CRD(meta["K"], meta["temperature"], meta["dim"], meta["momentum"])
    labels = np.arange(meta["n_data"])
    term.setup(TermContext(student_features=widths["s"], teacher_features=widths["t"], labels=labels))
    term.double()
    if parts == 2:  # micro-batches: only the first batch, which sets Z, must be whole
        term.Z_s.copy_(stored["Z_student"])
        term.Z_t.copy_(stored["Z_teacher"])
    for side, party in (("s", "student"), ("t", "teacher")):
        getattr(term, f"memory_{side}").copy_(stored[f"memory_{party}"])
        layer = getattr(term, f"embed_{side}")
        layer.weight.data.copy_(stored[f"p.{party}.linear.weight"])
        layer.bias.data.copy_(stored[f"p.{party}.linear.bias"])
    losses = []
    for step in range(meta["steps"]):
        student = stored[f"feat_s{step}"].clone().requires_grad_()
        term.zero_grad()
        loss = 0
        for rows in torch.arange(len(student)).chunk(parts):
            samples = stored[f"sample{step}"][rows]
            none = torch.zeros(len(rows), 1)
            outputs = (Outputs(none, (), features[rows]) for features in (student, stored[f"feat_t{step}"]))
            inputs = StepInputs(next(outputs), none, next(outputs), indices_B=stored[f"index{step}"][rows])
            with patch.object(term, "draw_negatives", lambda epoch, indices_B, samples=samples: samples[:, 1:]):
                loss = loss + term(inputs) * len(rows) / len(student)
        loss.backward()
        term.end_step()
        losses.append(loss.detach())
        close(loss, stored[f"loss{step}"], f"loss{step}")
        close(student.grad, stored[f"grad.feat_s{step}"], f"grad.feat_s{step}")
        for side, party in (("s", "student"), ("t", "teacher")):
            close(getattr(term, f"Z_{side}"), stored[f"Z_{party}"], f"Z_{party}")
            close(getattr(term, f"memory_{side}"), stored[f"memory_{party}_after{step}"], f"memory_{party}_after{step}")
            for kind in ("weight", "bias"):
                key, layer = f"grad{step}.p.{party}.linear.{kind}", getattr(term, f"embed_{side}")
                close(getattr(layer, kind).grad, stored[key], key)
    close(torch.stack(losses), stored["loss"], "loss")


def check_pkt(stored, meta):
    student = stored["feat_s"].clone().requires_grad_()
    value = pkt_loss(student, stored["feat_t"])
    value.backward()
    close(value, stored["loss"], "loss")
    close(student.grad, stored["grad.feat_s"], "grad.feat_s")


def check_cc(stored, meta):
    student = stored["feat_s"].clone().requires_grad_()
    term = CC(meta["dim"])
    term.setup(TermContext(student_features=student.shape[1], teacher_features=stored["feat_t"].shape[1]))
    term.double()
    layers = {f"p.{party}.linear": layer for party, layer in (("student", term.embed_s), ("teacher", term.embed_t))}
    for name, layer in layers.items():
        layer.weight.data.copy_(stored[f"{name}.weight"])
        layer.bias.data.copy_(stored[f"{name}.bias"])
    none = torch.zeros(len(student), 1)
    value = term(StepInputs(Outputs(none, (), student), none, Outputs(none, (), stored["feat_t"])))
    value.backward()
    close(value, stored["loss"], "loss")
    close(student.grad, stored["grad.feat_s"], "grad.feat_s")
    for name, layer in layers.items():
        for kind in ("weight", "bias"):
            close(getattr(layer, kind).grad, stored[f"grad.{name}.{kind}"], f"grad.{name}.{kind}")


def check_schedules(stored, meta):
    """Weights that rise, by epochs from 0; the file's entry 0 is the first epoch."""
    for key, first in (("dkd_warmup20_epoch_from_1", 1), ("reviewkd_cifar_warmup20_epoch_from_0", 0)):
        weight = KDOptions.model_validate({"weight": {"value": 1.0, "warmup": 20, "first": first}})
        close(torch.tensor([weight.weight_at(epoch) for epoch in range(240)], dtype=torch.float64), stored[key], key)
    assert stored["loss"] == 0  # the file has no loss


CHECKS = {"rkd": check_rkd, "crd": check_crd, "pkt": check_pkt, "cc": check_cc, "schedules": check_schedules}
