"""MLKD: multi-level logit distillation (Jin et al., CVPR 2023).

B batch, C classes, T temperatures.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.cross_entropy import cross_entropy_loss
from distillery.distill.losses.logits import LogitTerm, standardized_logits
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs

Compat = Literal["reference", "fixed"]

# The temperatures beside the one that is given; the original compares strong views at the first two only.
STRONG, WEAK = (3.0, 5.0), (2.0, 6.0)


def mlkd_loss(*arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
    """The sum of ``mlkd_parts``, a scalar; the arguments are theirs."""
    return torch.stack(list(mlkd_parts(*arguments, **options).values())).sum()


@full_precision
def mlkd_parts(
    weak_s: Tensor,
    strong_s: Tensor,
    weak_t: Tensor,
    strong_t: Tensor,
    target: Tensor,
    ce: float = 0.1,
    kd: float = 0.9,
    temperature: float | Tensor = 4.0,
    standardize: bool = False,
    compat: Compat = "reference",
) -> dict[str, Tensor]:
    """The weighted summands ``ce``, ``kd``, ``class`` and ``batch``, scalars (the authors' distillers/KD_ours.py).

    Over the temperatures t of {T, 3, 5, 2, 6}, with P the softmax at t and K_t(view) = t^2 KL(teacher || student):

        ce     ce x (CE(weak) + CE(strong))
        kd     kd x sum_t [ mean_B m_i K_t(weak) + mean_B K_t(strong) ]
        class  kd x sum_t sum_ij m_j (P_t' P_t - P_s' P_s)_ij^2 / C, of C x C relations
        batch  kd x sum_t sum_ij m_j (P_t P_t' - P_s P_s')_ij^2 / B, of B x B relations

    where m is 1 for the half of the images (or classes) of which the teacher is less sure. ``compat: fixed`` is that,
    and adds ``class`` and ``batch`` of the strong view, unmasked. ``reference`` is what the original's code does: m is
    its own mean, a factor; at the temperatures 2 and 6 the weak view stands for the strong one; ``class`` and ``batch``
    of the strong view are computed and dropped.

    Args:
        weak_s: the student's logits of the weakly augmented images (B, C).
        strong_s: of the strongly augmented ones.
        weak_t: the teacher's; detached.
        strong_t: likewise.
        target: class indices (B,) or distributions (B, C).
        ce: weight of the labels.
        kd: weight of the teacher.
        temperature: T.
        standardize: standardise all logits for ``kd``, as Sun et al. (CVPR 2024) do.
        compat: see above.
    """
    weak_t, strong_t = weak_t.detach(), strong_t.detach()
    images_B, classes_C = mlkd_unsure(weak_t)
    if compat == "reference":
        images_B, classes_C = (mask.mean().expand_as(mask) for mask in (images_B, classes_C))
    views = [(weak_s, weak_t), (strong_s, strong_t)]
    every = (temperature, *STRONG, *WEAK)
    seen = [(standardized_logits(one), standardized_logits(two)) for one, two in views] if standardize else views
    answers = [(images_B * _divergence(*seen[0], t)).mean() for t in every]
    answers += [_divergence(*seen[1], t).mean() for t in (temperature, *STRONG)]
    answers += [_divergence(*seen[1 if compat == "fixed" else 0], t).mean() for t in WEAK]
    masks = [(images_B, classes_C), (torch.ones_like(images_B), torch.ones_like(classes_C))]
    by_class, by_image = [], []
    for pair, (of_images_B, of_classes_C) in zip(views, masks[: 2 if compat == "fixed" else 1], strict=False):
        for t in every:
            student_BC, teacher_BC = ((logits / t).softmax(dim=1) for logits in pair)
            by_class.append(_unlike(student_BC.T, teacher_BC.T, of_classes_C))
            by_image.append(_unlike(student_BC, teacher_BC, of_images_B))
    return {
        "ce": ce * (cross_entropy_loss(weak_s, target) + cross_entropy_loss(strong_s, target)),
        "kd": kd * torch.stack(answers).sum(),
        "class": kd * torch.stack(by_class).sum(),
        "batch": kd * torch.stack(by_image).sum(),
    }


@full_precision
def mlkd_unsure(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Of which images (B,) and classes (C,) the teacher is at most as sure as of the median one: 1, else 0.

    It is as sure of an image as its largest probability is large, and of a class by its probabilities' sum.

    Args:
        teacher: logits (B, C).
    """
    probabilities_BC = teacher.softmax(dim=1)
    measures = probabilities_BC.amax(dim=1), probabilities_BC.sum(dim=0)
    images_B, classes_C = ((sure <= sure.quantile(0.5)).to(sure.dtype) for sure in measures)
    return images_B, classes_C


def _divergence(student_BC: Tensor, teacher_BC: Tensor, temperature: float | Tensor) -> Tensor:
    """``t^2 KL`` of every image, (B,)."""
    student_log, teacher_log = (F.log_softmax(logits / temperature, dim=1) for logits in (student_BC, teacher_BC))
    return temperature**2 * F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=1)


def _unlike(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared differences of the products of rows, summed under a mask of the columns, by the number of rows."""
    return ((teacher @ teacher.T - student @ student.T).square() * mask).sum() / len(student)


class MLKD(LogitTerm):
    """The term ``mlkd``, labels included: predictions of two views, relations of classes and of images.

    Medians and relations are those of a process's own images, as in the original.
    """

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the sum of all parts."""
        assert inputs.teacher is not None
        assert inputs.view is not None
        assert inputs.view.teacher is not None
        parties = inputs.student, inputs.view.student, inputs.teacher, inputs.view.teacher
        weak_s, strong_s, weak_t, strong_t = (party.logits_BC for party in parties)
        options = {"temperature": self.temperature_at(inputs.epoch), "standardize": self.standardize, **self.options}
        return mlkd_loss(weak_s, strong_s, weak_t, strong_t, inputs.target, **options)
