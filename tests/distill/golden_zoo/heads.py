"""How the authors' files of methods that use a network's last layer, or give stages logits, are checked."""

import torch
from torch import nn

from distillery.distill.losses.cat import CAT, CATHead, cat_loss
from distillery.distill.losses.cross_entropy import cross_entropy_loss
from distillery.distill.losses.ofa import OFA, ofa_loss
from distillery.distill.losses.simkd import SimKD
from distillery.distill.losses.srrl import SRRL, srrl_feature_loss, srrl_regression_loss
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import OwnStage, TermContext
from distillery.models.taps import Features, match_size


def close(found, expected, name):
    assert found.shape == expected.shape, name
    distance, allowed = (found - expected).abs().max(), 1e-9 * expected.abs().max().clamp_min(1e-4)
    assert distance <= allowed, f"{name}: {distance:.2e} off, {allowed:.2e} allowed"


def leaves(stored, *names):
    return {name: stored[name].clone().requires_grad_() for name in names}


def load(module, stored, prefix):
    """Give a module, whose batch norms are fresh, the stored parameters, each of which it must have."""
    module.double()
    parameters = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    assert parameters
    assert set(parameters) == {name for name, _ in module.named_parameters()}
    module.load_state_dict(parameters, strict=False)


def check_parameters(module, stored, name):
    """Compare the gradients of a module's parameters and its running statistics, none left out."""
    for parameter, value in module.named_parameters():
        close(value.grad, stored[f"grad.p.{name}{parameter}"], f"grad.p.{name}{parameter}")
    statistics = {buffer: value for buffer, value in module.named_buffers() if "running" in buffer}
    assert len(statistics) == sum(key.startswith(f"after.{name}") for key in stored)
    for buffer, value in statistics.items():
        close(value, stored[f"after.{name}{buffer}"], f"after.{name}{buffer}")


def classifier(weight, bias=None):
    layer = nn.Linear(*weight.shape[::-1], bias=bias is not None).double().requires_grad_(False)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def outputs(logits_BC=None, **features):
    return Outputs(torch.zeros(1, 1).double() if logits_BC is None else logits_BC, **features)


def check_simkd(stored, meta):
    student, teacher = leaves(stored, "feat_s")["feat_s"], stored["feat_t"]
    term = SimKD(meta["factor"])
    context = TermContext(
        student_features=student.shape[1],
        teacher_features=teacher.shape[1],
        teacher_classifier=classifier(stored["fc.weight"], stored["fc.bias"]),
        teacher_map_size=tuple(teacher.shape[2:]),
    )
    term.setup(context)
    head = term.head(context)
    load(head.transfer, stored, "p.transfer.")
    head.double()
    logits_BC, projected = head(Features(averaged=student))
    loss = term(StepInputs(outputs(head=projected), torch.zeros(1), outputs(averaged=teacher)))
    loss.backward()
    close(loss, stored["loss"], "loss")
    close(projected, stored["projected"], "projected")
    close(match_size(teacher, tuple(projected.shape[2:])), stored["target"], "target")
    close(logits_BC, stored["logits"], "logits")
    close(student.grad, stored["grad.feat_s"], "grad.feat_s")
    check_parameters(head.transfer, stored, "transfer.")


def check_cat(stored, meta):
    """The stored CAMs are the maps of networks whose last layers hand them on."""
    cam_s = leaves(stored, "cam_s")["cam_s"]
    classes = cam_s.shape[1]
    identity = classifier(torch.eye(classes).double())
    options = [meta[key] for key in ("resolution", "normalize", "binarize")]
    head = CATHead(classes, classes).double()
    head.convolution.weight.data.copy_(identity.weight[:, :, None, None])
    logits_BC, cam_BCHW = head(Features(averaged=cam_s))
    close(cross_entropy_loss(logits_BC, stored["labels"]), stored["ce"], "ce")
    teacher = outputs(averaged=stored["cam_t"])
    for compat, student in (("reference", outputs(head=cam_BCHW)), ("fixed", outputs(averaged=cam_s))):
        cam_s.grad = None
        term = CAT(*options, compat=compat)
        term.setup(TermContext(student_classifier=identity, teacher_classifier=identity))
        loss = meta["weight"] * term(StepInputs(student, stored["labels"], teacher))
        loss.backward(retain_graph=True)
        close(loss, stored["loss"], "loss")
        close(cam_s.grad, stored["grad.cam_s"], "grad.cam_s")
    close(meta["weight"] * cat_loss(cam_s, stored["cam_t"], *options), stored["loss"], "loss")


def check_srrl(stored, meta):
    student, vector = leaves(stored, "feat_s")["feat_s"], stored["feat_t"].mean(dim=(2, 3))
    weight, bias = stored["fc.weight"], stored["fc.bias"]
    term = SRRL(meta["weight_sr"])
    term.setup(
        TermContext(
            student_features=student.shape[1],
            teacher_features=vector.shape[1],
            teacher_classifier=classifier(weight, bias),
        )
    )
    load(term.connector, stored, "p.Connectors.")
    teacher = outputs(stored["logits_t"], embedding_BD=vector)
    loss = term(StepInputs(outputs(averaged=student), torch.zeros(1), teacher))
    loss.backward()
    close(loss, stored["loss"], "loss")
    close(student.grad, stored["grad.feat_s"], "grad.feat_s")
    check_parameters(term.connector, stored, "Connectors.")
    connected = term.connected(student)
    close(connected @ weight.T + bias, stored["logits_through_teacher"], "logits_through_teacher")
    close(srrl_feature_loss(connected, vector), stored["feature_matching"], "feature_matching")
    regression = srrl_regression_loss(connected, weight, bias, stored["logits_t"])
    close(regression, stored["softmax_regression"], "softmax_regression")


def check_ofa(stored, meta):
    """One head alone, or with projectors of a student that has maps, or tokens."""
    stages = [stage - 1 for stage in meta.get("stages", [])]
    tokens, eps = "heads" in meta, meta["eps"]
    names = {stage: f"feat_s{stage + 1 if tokens else stage}" for stage in stages}
    student = leaves(stored, "logits_s", *names.values())
    prefix = meta.get("num_tokens", 0) if tokens else None
    shapes = []
    for stage in range(4):
        feature = student.get(names.get(stage))
        if feature is None:
            shapes.append(OwnStage(1, (1, 1), prefix))
        elif tokens:
            side = round((feature.shape[1] - prefix) ** 0.5)
            shapes.append(OwnStage(feature.shape[2], (side, side), prefix))
        else:
            shapes.append(OwnStage(feature.shape[1], tuple(feature.shape[2:])))
    options = {"eps": eps[0] if isinstance(eps, list) and len(eps) == 1 else eps, "temperature": meta["temperature"]}
    term = OFA(**options, stages=tuple(stages), heads=meta.get("heads", 4))
    term.setup(
        TermContext(
            student_features=meta.get("student_dim", 0),
            teacher_features=meta.get("teacher_dim", 0),
            student_stages=tuple(shapes),
            classes=student["logits_s"].shape[1],
        )
    )
    for stage in stages:
        load(term.projectors[str(stage)], stored, f"p.{stage + 1}.")
    unpaired = tuple(student.get(names.get(stage), torch.zeros(0)) for stage in range(4))
    inputs = StepInputs(outputs(student["logits_s"], unpaired=unpaired), stored["labels"], outputs(stored["logits_t"]))
    loss = term(inputs)
    loss.backward()
    close(loss, stored["loss"], "loss")
    for name, leaf in student.items():
        close(leaf.grad, stored[f"grad.{name}"], f"grad.{name}")
    for stage in stages:
        check_parameters(term.projectors[str(stage)], stored, f"{stage + 1}.")
    of_logits = eps[-1] if isinstance(eps, list) else eps
    alone = ofa_loss(student["logits_s"], stored["logits_t"], stored["labels"], of_logits, meta["temperature"])
    if stages:
        close(alone, stored["loss_logits"], "loss_logits")
        close(loss - alone, stored["loss_stages"], "loss_stages")
    else:
        close(alone, stored["loss"], "loss")


CHECKS = {"simkd": check_simkd, "cat": check_cat, "srrl": check_srrl, "ofa": check_ofa, "ofa_tokens": check_ofa}
