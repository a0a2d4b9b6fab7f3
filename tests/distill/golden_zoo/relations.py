"""How the authors' files of relations between images, of contrast and of self-distillation are checked."""

from unittest.mock import patch

import numpy as np
import torch

from distillery import losses
from distillery.distill.losses import rkd
from distillery.distill.losses.cc import CC
from distillery.distill.losses.crd import CRD
from distillery.distill.losses.mlkd import mlkd_parts, mlkd_unsure
from distillery.distill.losses.pkt import pkt_loss
from distillery.distill.losses.pskd import PSKD, pskd_alpha, pskd_loss
from distillery.distill.losses.rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from distillery.distill.losses.similarity import Similarity, SimilarityLocal, similarity_loss
from distillery.distill.objective import build_objective
from distillery.distill.step import Outputs, StepInputs, View
from distillery.distill.term import OwnStage, TermContext
from distillery.experiment.schema.objective import KDOptions, Objective


def close(found, expected, name):
    assert found.shape == expected.shape, name
    distance, allowed = (found - expected).abs().max(), 1e-9 * expected.abs().max().clamp_min(1e-4)
    assert distance <= allowed, f"{name}: {distance:.2e} off, {allowed:.2e} allowed"


def check_rkd(stored, meta):
    functions = {
        "distance": rkd_distance_loss,
        "angle": rkd_angle_loss,
        "feat_s": lambda *both: rkd_loss(*both, meta["w_distance"], meta["w_angle"]),
    }
    for piece in (rkd.PIECE, 1, 500):  # however many pieces and slices the angles are computed in
        for part, function in functions.items():
            student = stored["feat_s"].clone().requires_grad_()
            with patch.object(rkd, "PIECE", piece), patch.object(rkd, "SLICE", piece):
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
    values = []
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
        values.append(loss.detach())
        close(loss, stored[f"loss{step}"], f"loss{step}")
        close(student.grad, stored[f"grad.feat_s{step}"], f"grad.feat_s{step}")
        for side, party in (("s", "student"), ("t", "teacher")):
            close(getattr(term, f"Z_{side}"), stored[f"Z_{party}"], f"Z_{party}")
            close(getattr(term, f"memory_{side}"), stored[f"memory_{party}_after{step}"], f"memory_{party}_after{step}")
            for kind in ("weight", "bias"):
                key, layer = f"grad{step}.p.{party}.linear.{kind}", getattr(term, f"embed_{side}")
                close(getattr(layer, kind).grad, stored[key], key)
    close(torch.stack(values), stored["loss"], "loss")


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


def check_similarity(stored, meta):
    if meta["part"] == "global":
        check_similarity_steps(stored, meta)
    else:
        check_similarity_local(stored, meta)


def check_similarity_steps(stored, meta):
    term, values = Similarity(meta["temperature"], meta["queue"]), []
    widths = [stored[f"feat_{side}0"].shape[1] for side in "st"]
    term.setup(TermContext(student_features=widths[0], teacher_features=widths[1]))
    term.double()
    for kind in ("weight", "bias"):
        getattr(term.projector, kind).data.copy_(stored[f"p.{kind}"])
    for step in range(meta["steps"]):
        student = stored[f"feat_s{step}"].clone().requires_grad_()
        term.zero_grad()
        none = torch.zeros(len(student), 1)
        loss = term(StepInputs(Outputs(none, (), student), none, Outputs(none, (), stored[f"feat_t{step}"])))
        loss.backward()
        term.end_step()
        values.append(loss.detach())
        close(loss, stored[f"loss{step}"], f"loss{step}")
        close(student.grad, stored[f"grad.feat_s{step}"], f"grad.feat_s{step}")
        close(term.queue[0], stored[f"queue_after{step}"], f"queue_after{step}")
        for kind in ("weight", "bias"):
            key = f"grad{step}.p.{kind}"
            close(getattr(term.projector, kind).grad, stored[key], key)
    close(torch.stack(values), stored["loss"], "loss")


def check_similarity_local(stored, meta):
    """Both parts; the file's queue is the one that the loss sees."""
    feature, vector = (stored[name].clone().requires_grad_() for name in ("feat_s", "embedding_s"))
    term = SimilarityLocal(meta["temperature"])
    ends = [OwnStage(map_.shape[1], tuple(map_.shape[2:])) for map_ in (feature, stored["feat_t"])]
    term.setup(TermContext(student_last=ends[0], teacher_last=ends[1]))
    layers = {"local": term.double().projector, "global": torch.nn.Linear(*stored["p.global.weight"].T.shape).double()}
    for name, layer in layers.items():
        layer.weight.data.copy_(stored[f"p.{name}.weight"])
        layer.bias.data.copy_(stored[f"p.{name}.bias"])
    none = torch.zeros(len(feature), 1)
    losses = {
        "local": term(StepInputs(Outputs(none, last=feature), none, Outputs(none, last=stored["feat_t"]))),
        "global": similarity_loss(
            layers["global"](vector), stored["embedding_t"], stored["queue"], meta["temperature"]
        ),
    }
    total = losses["global"] + losses["local"]
    total.backward()
    for name, value in losses.items():
        close(value, stored[f"loss_{name}"], f"loss_{name}")
    close(total, stored["loss"], "loss")
    close(feature.grad, stored["grad.feat_s"], "grad.feat_s")
    close(vector.grad, stored["grad.embedding_s"], "grad.embedding_s")
    for name, layer in layers.items():
        for kind in ("weight", "bias"):
            key = f"grad.p.{name}.{kind}"
            close(getattr(layer, kind).grad, stored[key], key)


def check_mlkd(stored, meta):
    weak, strong = (stored[f"{view}_s"].clone().requires_grad_() for view in ("weak", "strong"))
    parts = mlkd_parts(
        weak,
        strong,
        stored["weak_t"],
        stored["strong_t"],
        stored["labels"],
        meta["ce_weight"],
        meta["kd_weight"],
        meta["temperature"],
        meta["logit_stand"],
    )
    for name, value in parts.items():
        close(value, stored[name], name)
    options = {"ce": meta["ce_weight"], "kd": meta["kd_weight"], "standardize": meta["logit_stand"]}
    objective = build_objective(Objective.model_validate({"mlkd": options | {"temperature": meta["temperature"]}}))
    view = View(Outputs(strong), Outputs(stored["strong_t"]))
    value = objective(StepInputs(Outputs(weak), stored["labels"], Outputs(stored["weak_t"]), view=view))["loss"]
    value.backward()
    close(value, stored["loss"], "loss")
    for name, found in (("weak_s", weak), ("strong_s", strong)):
        close(found.grad, stored[f"grad.{name}"], f"grad.{name}")
    for name, mask in zip(("image_share", "class_share"), mlkd_unsure(stored["weak_t"]), strict=True):
        close(mask.mean(), stored[name], name)


def check_pskd(stored, meta):
    if "past" not in stored:
        check_pskd_run(stored, meta)
        return
    logits = stored["logits_s"].clone().requires_grad_()
    value = pskd_loss(logits, stored["labels"], stored["past"], meta["alpha_t"])
    value.backward()
    close(value, stored["loss"], "loss")
    close(logits.grad, stored["grad.logits_s"], "grad.logits_s")


def check_pskd_run(stored, meta):
    """The authors' whole training of a linear model."""
    x, labels, order = stored["x"], stored["labels"], stored["order"]
    classes = len(stored["bias"])
    weight, bias = (stored[name].clone().requires_grad_() for name in ("weight", "bias"))
    term = PSKD(meta["alpha_T"])
    term.setup(TermContext(labels=labels.cpu().numpy(), classes=classes, epochs=meta["epochs"]))
    term.double()
    settings = {name: meta[name] for name in ("lr", "momentum", "nesterov")}
    optimizer, values = torch.optim.SGD([weight, bias], **settings), []
    for epoch in range(meta["epochs"]):
        share = pskd_alpha(meta["alpha_T"], epoch, meta["epochs"])
        close(torch.tensor(share, dtype=torch.float64), stored["alpha"][epoch], "alpha")
        for rows in order[epoch].split(meta["batch"]):
            outputs = Outputs(x[rows] @ weight.T + bias)
            loss = term(StepInputs(outputs, labels[rows], epoch=epoch + 0.5, indices_B=rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            term.end_step()
            values.append(loss.detach())
        close(term.past, stored[f"predictions_after{epoch}"], f"predictions_after{epoch}")
    close(torch.stack(values), stored["loss"], "loss")
    close(weight.detach(), stored["weight_after"], "weight_after")
    close(bias.detach(), stored["bias_after"], "bias_after")


def check_cskd(stored, meta):
    options = {"ce": {}, "cskd": {"weight": meta["lamda"], "temperature": meta["temperature"]}}
    logits = stored["logits"].clone().requires_grad_()
    inputs = StepInputs(Outputs(logits), stored["labels"], view=View(Outputs(stored["logits_partner"])))
    values = build_objective(Objective.model_validate(options))(inputs)
    values["loss"].backward()
    for name, key in (("ce", "ce"), ("kd", "cskd"), ("loss", "loss")):
        close(values[key], stored[name], name)
    close(logits.grad, stored["grad.logits"], "grad.logits")


def check_tfkd(stored, meta):
    """Both forms as the sums of terms that the docs give for them."""
    classes = stored["logits_s"].shape[1]
    share, times = meta["alpha"], meta["multiplier"] / classes
    virtual = {"correct": meta["correct_prob"], "temperature": meta["reg_temperature"]}
    forms = {
        "self": {
            "ce": {"weight": 1 - share},
            "kd": {"weight": share * times, "temperature": meta["temperature"]},
        },
        "regularization": {
            "ce": {"weight": 1 - meta["reg_alpha"]},
            "tfkd": {"weight": meta["reg_alpha"] * meta["multiplier"], **virtual},
        },
    }
    for name, terms in forms.items():
        logits = stored["logits_s"].clone().requires_grad_()
        objective = build_objective(Objective.model_validate(terms))
        value = objective(StepInputs(Outputs(logits), stored["labels"], Outputs(stored["logits_t"])))["loss"]
        value.backward()
        close(value, stored[name], name)
        close(logits.grad, stored[f"grad_{name}.logits_s"], f"grad_{name}.logits_s")
    close(stored["self"], stored["loss"], "loss")


def check_schedules(stored, meta):
    """Weights that rise, by epochs from 0; the file's entry 0 is the first epoch."""
    for key, late in (("dkd_warmup20_epoch_from_1", False), ("reviewkd_cifar_warmup20_epoch_from_0", True)):
        weight = KDOptions.model_validate({"weight": {"value": 1.0, "warmup": 20, "from_zero": late}})
        close(torch.tensor([weight.weight_at(epoch) for epoch in range(240)], dtype=torch.float64), stored[key], key)
    if hasattr(losses, "reversal_at"):  # of learned temperatures
        reversals, key = [-losses.reversal_at(epoch) for epoch in range(240)], "ctkd_lambda_cos_0_-1_10"
        close(torch.tensor(reversals, dtype=torch.float64), stored[key], key)
    alphas = [pskd_alpha(0.8, epoch, 300) for epoch in range(300)]
    close(torch.tensor(alphas, dtype=torch.float64), stored["pskd_alpha_0.8_of_300"], "pskd_alpha_0.8_of_300")
    assert stored["loss"] == 0  # the file has no loss


CHECKS = {
    "rkd": check_rkd,
    "crd": check_crd,
    "similarity": check_similarity,
    "pkt": check_pkt,
    "cc": check_cc,
    "mlkd": check_mlkd,
    "pskd": check_pskd,
    "cskd": check_cskd,
    "tfkd": check_tfkd,
    "schedules": check_schedules,
}
