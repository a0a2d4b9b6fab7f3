"""Masked generative distillation: masks without state."""

import pytest
import torch

from distillery.distill.losses.masked_generative import MaskedGenerative, masked_generative_loss
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext
from distillery.experiment import load_experiment


def term_of(student=4, teacher=6, seed=0, **options):
    torch.manual_seed(0)
    term = MaskedGenerative(**options)
    term.setup(TermContext((StagePair(student, teacher, None),), seed=seed))
    return term


def test_the_gradient_is_the_derivative():
    generator = torch.Generator().manual_seed(0)
    generated, teacher = (torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: masked_generative_loss(x, teacher, 0.1), generated.requires_grad_())


def test_the_share_of_masked_channels_is_as_asked_and_independent_in_channels_and_images():
    kept = term_of(masked_share=0.3).draw_kept(2, torch.arange(400), 200)
    assert kept.shape == (400, 200)
    assert (~kept).double().mean().item() == pytest.approx(0.3, abs=0.007)  # 4 deviations
    for dim, count in ((0, 400), (1, 200)):
        shares = kept.double().mean(dim=dim)
        assert shares.std().item() == pytest.approx((0.3 * 0.7 / count) ** 0.5, rel=0.2)
    assert term_of(masked_share=0.0).draw_kept(0, torch.arange(50), 50).all()


def test_a_mask_is_a_function_of_seed_epoch_and_image():
    term, images = term_of(), torch.tensor([7, 3, 11, 3])
    kept = term.draw_kept(4, images, 64)
    assert torch.equal(kept[1], kept[3])
    assert torch.equal(kept[1:3], term_of().draw_kept(4, images[1:3], 64))
    for other in (term.draw_kept(5, images, 64), term_of(seed=1).draw_kept(4, images, 64)):
        assert not torch.equal(kept, other)


def test_masked_channels_give_no_gradient():
    term = term_of(6, 6, masked_share=0.5)
    student, teacher = torch.randn(3, 6, 4, 4, requires_grad=True), torch.randn(3, 6, 4, 4)
    indices = torch.arange(3)
    outputs = (Outputs(torch.zeros(3, 1), raw=(feature,)) for feature in (student, teacher))
    term(StepInputs(next(outputs), indices, next(outputs), indices_B=indices)).backward()
    kept = term.draw_kept(0, indices, 6)
    assert torch.equal((student.grad != 0).any(dim=(2, 3)), kept)
    assert 0 < kept.sum() < 18


def test_mixed_images_are_welcome(workplace):
    workplace.edit_recipe("mix: {mixup: 0.8}\ndrop_last: true")
    workplace.edit("kd: {weight: 0.5, temperature: 2}", "masked_generative: {}")
    load_experiment(workplace.experiment)
