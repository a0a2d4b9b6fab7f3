"""MLKD: what its parts are in both compatibilities, and gradients at the edges."""

import pytest
import torch
from tests.distill.conftest import finite_in_half_precision

from distillery.distill.losses.kd import kd_loss
from distillery.distill.losses.mlkd import mlkd_loss, mlkd_parts, mlkd_unsure
from distillery.errors import UserError
from distillery.experiment import load_experiment

LABELS = torch.tensor([0, 2, 1, 1, 0])


def views(batch=5, classes=4, scale=2.0, seed=0):
    """Logits: weak and strong of the student, weak and strong of the teacher."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(batch, classes, dtype=torch.float64, generator=generator) for _ in range(4)]


def test_the_teacher_is_unsure_of_the_lower_half():
    images, classes = mlkd_unsure(torch.tensor([[9.0, 0, 0], [0, 1, 0], [0, 5, 0]]))
    assert images.tolist() == [0, 1, 1]  # the median itself counts
    assert classes.tolist() == [1, 0, 1]
    images, _ = mlkd_unsure(torch.tensor([[9.0, 0, 0], [0, 1, 0]]))
    assert images.tolist() == [0, 1]


def test_fixed_masks_are_of_single_images_and_the_strong_view_is_compared_at_all_temperatures():
    weak_s, strong_s, weak_t, strong_t = views()
    parts = mlkd_parts(weak_s, strong_s, weak_t, strong_t, LABELS, 1.0, 1.0, 4.0, compat="fixed")
    images, _ = mlkd_unsure(weak_t)
    half, expected = images.bool(), 0
    for temperature in (4.0, 3.0, 5.0, 2.0, 6.0):
        expected += kd_loss(weak_s[half], weak_t[half], temperature) * half.double().mean()
        expected += kd_loss(strong_s, strong_t, temperature)
    torch.testing.assert_close(parts["kd"], expected)


def test_fixed_relations_are_of_both_views():
    weak_s, strong_s, weak_t, strong_t = views()
    for compat, counts in (("reference", False), ("fixed", True)):
        one, other = (
            mlkd_parts(weak_s, strong, weak_t, strong_t, LABELS, compat=compat) for strong in (strong_s, 2 * strong_s)
        )
        assert all(bool(one[part] != other[part]) == counts for part in ("class", "batch"))


@pytest.mark.parametrize("compat", ["reference", "fixed"])
@pytest.mark.parametrize("standardize", [False, True])
def test_the_gradient_is_the_derivative(compat, standardize):
    weak_s, strong_s, weak_t, strong_t = views(3, 4)

    def loss(weak, strong):
        return mlkd_loss(weak, strong, weak_t, strong_t, LABELS[:3], standardize=standardize, compat=compat)

    assert torch.autograd.gradcheck(loss, (weak_s.requires_grad_(), strong_s.requires_grad_()))


def test_only_the_student_gets_a_gradient_and_soft_labels_are_welcome():
    logits = [view.requires_grad_() for view in views()]
    mlkd_loss(*logits, torch.full((5, 4), 0.25, dtype=torch.float64)).backward()
    assert [view.grad is None for view in logits] == [False, False, True, True]


@pytest.mark.parametrize("compat", ["reference", "fixed"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_edges_stay_finite_in_half_precision(scale, compat):
    weak_s, strong_s, weak_t, strong_t = (view.bfloat16() for view in views(scale=scale))
    finite_in_half_precision(
        lambda x: mlkd_loss(x, strong_s, weak_t, strong_t, LABELS, standardize=True, compat=compat), weak_s
    )


@pytest.mark.slow
def test_the_strong_view_is_augmented_as_the_recipe_says(workplace):
    line = "{model: cifar_resnet8, recipe: tiny, epochs: 1, teacher: big, objective: {mlkd: {}}}"
    strong = line.replace("epochs: 1", "epochs: 1, augment_view: [{name: horizontal_flip}, {name: fixmatch}]")
    workplace.edit("  tables:", f"    plain: {line}\n    strong: {strong}\n  tables:")
    workplace.make("big")
    assert len({(workplace.make(name) / "history.csv").read_text() for name in ("plain", "strong")}) == 2
    workplace.edit("{name: fixmatch}", "{name: random_resized_crop}")
    with pytest.raises(UserError, match=r"strong\.augment_view: .* random_resized_crop works on the whole image"):
        load_experiment(workplace.experiment)
    workplace.edit("{name: random_resized_crop}", "{name: fixmatch}")
    workplace.edit("mlkd: {}", "kd: {}")
    with pytest.raises(UserError, match=r"strong\.augment_view: no term of the objective compares two views"):
        load_experiment(workplace.experiment)
