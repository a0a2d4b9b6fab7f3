"""FitNet: a regressor for every pair of sizes, and a mean of squares."""

import pytest
import torch

from distillery.distill.losses.fitnet import FitNet, Regressor, fitnet_loss
from distillery.distill.step import Maps, Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.training.check import check_stages


@pytest.mark.parametrize("compat", ["fixed", "reference"])
@pytest.mark.parametrize(
    ("student", "teacher", "kernels"),
    [
        ((6, 6), (6, 6), {"fixed": (1, 1), "reference": (1, 1)}),
        ((8, 6), (4, 3), {"fixed": (3, 3), "reference": (3, 3)}),
        ((4, 3), (8, 6), {"fixed": (4, 4), "reference": (4, 4)}),
        ((7, 9), (5, 4), {"fixed": (1, 1), "reference": (3, 6)}),
        ((5, 5), (7, 8), {"fixed": (3, 3), "reference": (3, 3)}),
        ((9, 4), (5, 6), {"fixed": (3, 3), "reference": (3, 3)}),
        ((56, 56), (1, 1), {"fixed": (1, 1), "reference": (56, 56)}),
    ],
)
def test_maps_of_any_sizes_meet(student, teacher, kernels, compat):
    regressor = Regressor(3, 5, student, teacher, compat)
    assert regressor.conv.kernel_size == kernels[compat]
    feature = torch.randn(3, 3, *student, requires_grad=True)
    loss = fitnet_loss(regressor(feature), torch.randn(3, 5, *teacher))
    loss.backward()
    assert loss.isfinite()
    assert feature.grad.isfinite().all()


def test_the_gradient_is_the_derivative():
    generator = torch.Generator().manual_seed(0)
    regressed, teacher = (
        torch.randn(2, 3, *size, dtype=torch.float64, generator=generator) for size in ((4, 5), (3, 5))
    )
    assert torch.autograd.gradcheck(lambda x: fitnet_loss(x, teacher), regressed.requires_grad_())


def test_it_looks_at_the_chosen_stage_alone():
    maps = tuple(torch.randn(3, 4, 2, 2).requires_grad_() for _ in range(3))
    term = FitNet(2)
    term.setup(TermContext((StagePair(4, 4, None),) * 3))
    outputs = Outputs(torch.zeros(3, 1), unpooled=Maps(raw=maps))
    term(StepInputs(outputs, torch.zeros(3), outputs)).backward()
    assert [feature.grad is not None for feature in maps] == [False, False, True]


def test_one_number_a_channel_is_refused_in_a_line():
    with pytest.raises(UserError, match=r"^objective\.fitnet: a batch of one image .* set `drop_last: true`$"):
        Regressor(3, 5, (1, 1), (1, 1))(torch.zeros(1, 3, 1, 1))


def test_a_stage_that_is_not_there_is_refused_before_training(workplace):
    workplace.edit("kd: {weight: 0.5, temperature: 2}", "fitnet: {stage: 3}")
    with pytest.raises(UserError, match=r"taught.*objective\.fitnet\.stage: no stage 3; the networks have 3, counted"):
        check_stages(load_experiment(workplace.experiment))
