"""Checks of the terms on feature maps against their originals' stored losses, parts, gradients and statistics."""

from contextlib import contextmanager

import torch

from distillery.distill.losses.at import AT, at_loss
from distillery.distill.losses.fitnet import FitNet, Regressor, fitnet_loss
from distillery.distill.losses.masked_generative import MaskedGenerative
from distillery.distill.losses.nst import NST, nst_loss
from distillery.distill.losses.reviewkd import ReviewKD
from distillery.distill.losses.sp import SP
from distillery.distill.losses.vid import VID
from distillery.distill.step import Maps, Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext


def close(found, stored, name):
    assert found is not None, f"{name} has none"
    assert found.shape == stored.shape, f"{name}: {tuple(found.shape)}, not {tuple(stored.shape)}"
    difference, scale = (found.detach() - stored).abs().max(), stored.abs().max().clamp_min(1e-4)
    assert difference <= 1e-9 * scale, f"{name} is {difference:.1e} off, of {scale:.1e}"


@contextmanager
def float64():
    """Modules begin in float64, so that their first values are not rounded."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class Checked:
    """Notes which stored arrays were compared or used, so that none is passed over."""

    def __init__(self, stored):
        self.stored, self.left = stored, set(stored)

    def take(self, name):
        self.left.discard(name)
        return self.stored[name]

    def leaf(self, name):
        return self.take(name).clone().requires_grad_()

    def close(self, found, name):
        close(found, self.take(name), name)

    def end(self):
        assert not self.left, f"not compared: {sorted(self.left)}"


def stages_of(stored):
    return sorted(int(name.removeprefix("feat_s")) for name in stored if name.startswith("feat_s") and name != "feat_s")


def set_up(term, students, teachers, **more):
    """A term of networks that have these maps."""
    pairs = [
        StagePair(
            student.shape[1],
            teacher.shape[1],
            None,
            (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])),
            tuple(student.shape[2:]),
            tuple(teacher.shape[2:]),
        )
        for student, teacher in zip(students, teachers, strict=True)
    ]
    with float64():
        term.setup(TermContext(tuple(pairs), **more))
    return term


def step(students, teachers, embeddings=(None, None)):
    """What a step shows; maps of two sizes as they are, which terms bring together as the extractors do."""
    none = torch.zeros(len(students[0]), 1)

    def outputs(maps, embedding):
        maps = tuple(maps)
        return Outputs(none, maps, embedding, maps, maps, unpooled=Maps(maps, maps, maps))

    student, teacher = outputs(students, embeddings[0]), outputs(teachers, embeddings[1])
    return StepInputs(student, none, teacher, indices_B=torch.arange(len(none)))


def load_parameters(checked, module, stored_prefix, names=None):
    """Fill a module; ``names`` maps its parameters' names to the stored ones, where these differ."""
    names = names or {name: name for name, _ in module.named_parameters()}
    with torch.no_grad():
        for ours, theirs in names.items():
            module.get_parameter(ours).copy_(checked.take(f"{stored_prefix}.{theirs}"))


def check_gradients(checked, module, stored_prefix, names=None):
    names = names or {name: name for name, _ in module.named_parameters()}
    for ours, theirs in names.items():
        checked.close(module.get_parameter(ours).grad, f"grad.{stored_prefix}.{theirs}")


def check_statistics(checked, module, stored_prefix):
    for name, buffer in module.named_buffers():
        if not name.endswith("num_batches_tracked"):
            checked.close(buffer, f"{stored_prefix}.{name}")


def check_fitnet(stored, meta):
    checked = Checked(stored)
    student, teacher = checked.leaf("feat_s"), checked.take("feat_t")
    if meta["use_relu"]:
        term = set_up(FitNet(0, "reference"), [student], [teacher])
        regressor = term.regressor
    else:
        with float64():
            sizes = tuple(student.shape[2:]), tuple(teacher.shape[2:])
            regressor = Regressor(student.shape[1], teacher.shape[1], *sizes, "reference", relu=False)
    convolution = regressor.conv
    assert type(convolution).__name__ == meta["kind"].partition(" ")[0]
    for key, found in (
        ("kernel", convolution.kernel_size),
        ("stride", convolution.stride),
        ("padding", convolution.padding),
    ):
        assert list(found) == meta[key]
    load_parameters(checked, regressor, "p")
    loss = term(step([student], [teacher])) if meta["use_relu"] else fitnet_loss(regressor(student), teacher)
    loss.backward()
    checked.close(loss, "loss")
    checked.close(student.grad, "grad.feat_s")
    check_gradients(checked, regressor, "p")
    check_statistics(checked, regressor, "after")
    regressed = regressor(student)
    checked.close(regressed, "regressed")
    if "target" in stored:
        checked.close(torch.nn.functional.adaptive_avg_pool2d(teacher, regressed.shape[2:]), "target")
    checked.end()


def check_stagewise(stored, term, loss_of, load=None, compare=None):
    """A sum over the stages, each of whose losses is stored."""
    checked = Checked(stored)
    stages = stages_of(stored)
    students = [checked.leaf(f"feat_s{stage}") for stage in stages]
    teachers = [checked.take(f"feat_t{stage}") for stage in stages]
    set_up(term, students, teachers)
    if load is not None:
        load(checked, term, stages)
    loss = term(step(students, teachers))
    loss.backward()
    checked.close(loss, "loss")
    for stage, student, teacher in zip(stages, students, teachers, strict=True):
        checked.close(loss_of(term, stage, student, teacher), f"loss{stage}")
        checked.close(student.grad, f"grad.feat_s{stage}")
    if compare is not None:
        compare(checked, term, stages)
    checked.end()


def check_at(stored, meta):
    power = meta["p"]
    check_stagewise(stored, AT(power=power), lambda _, __, *maps: at_loss(*maps, power))


def check_nst(stored, meta):
    assert meta["kernel"] == "polynomial, degree 2, offset 0"
    check_stagewise(stored, NST(), lambda _, __, *maps: nst_loss(*maps))


def check_vid(stored, meta):
    def load(checked, term, stages):
        for stage in stages:
            scale = term.log_scales[str(stage)]
            first = checked.take(f"log_scale_init{stage}")  # of a parameter in float32
            close(scale.detach().float(), first.float(), f"log_scale_init{stage}")
            scale.data.copy_(checked.take(f"p{stage}.log_scale"))
            load_parameters(checked, term.regressors[str(stage)], f"p{stage}.regressor")

    def compare(checked, term, stages):
        for stage in stages:
            checked.close(term.log_scales[str(stage)].grad, f"grad.p{stage}.log_scale")
            check_gradients(checked, term.regressors[str(stage)], f"p{stage}.regressor")

    term = VID(initial_variance=meta["init_pred_var"], least_variance=meta["eps"])
    check_stagewise(stored, term, lambda term, stage, *maps: term.distance(stage, *maps), load, compare)


def check_sp(stored, meta):
    checked = Checked(stored)
    student, teacher = checked.leaf("feat_s"), checked.take("feat_t")
    # What an image without any feature does to the gradient is the one difference of the two.
    term = SP("reference" if meta.get("zero_image") else "fixed")
    loss = term(step([student], [teacher]))
    loss.backward()
    checked.close(loss, "loss")
    checked.close(student.grad, "grad.feat_s")
    checked.end()


def check_reviewkd(stored, meta):
    checked = Checked(stored)
    *stages, last = stages_of(stored)
    students = [checked.leaf(f"feat_s{stage}") for stage in (*stages, last)]
    teachers = [checked.take(f"feat_t{stage}") for stage in (*stages, last)]
    widths = {"student_features": students[-1].shape[1], "teacher_features": teachers[-1].shape[1]}
    term = set_up(ReviewKD(meta["mid_channels"]), students[:-1], teachers[:-1], **widths)
    for stage, fusion in enumerate(term.fusions):
        load_parameters(checked, fusion, f"p{stage}")
    embeddings = students[-1][:, :, 0, 0], teachers[-1][:, :, 0, 0]
    loss = term(step(students[:-1], teachers[:-1], embeddings))
    loss.backward()
    checked.close(loss, "loss")
    for stage, (student, fusion) in enumerate(zip(students, term.fusions, strict=True)):
        checked.close(student.grad, f"grad.feat_s{stage}")
        check_gradients(checked, fusion, f"p{stage}")
        check_statistics(checked, fusion, f"after{stage}")
    for stage, made in enumerate(term.review(students, teachers)):
        checked.close(made, f"out{stage}")
    checked.end()


def check_masked_generative(stored, meta):
    checked = Checked(stored)
    student, teacher = checked.leaf("feat_s"), checked.take("feat_t")
    term = set_up(MaskedGenerative(meta["alpha"], meta["masked_share"]), [student], [teacher])
    load_parameters(checked, term, "p")
    kept = checked.take("kept")
    term.draw_kept = lambda epoch, indices_B, channels: kept[:, :, 0, 0]
    loss = term(step([student], [teacher]))
    loss.backward()
    checked.close(loss, "loss")
    checked.close(student.grad, "grad.feat_s")
    check_gradients(checked, term, "p")
    checked.end()


CHECKS = {
    "fitnet": check_fitnet,
    "at": check_at,
    "nst": check_nst,
    "vid": check_vid,
    "sp": check_sp,
    "reviewkd": check_reviewkd,
    "masked_generative": check_masked_generative,
}
