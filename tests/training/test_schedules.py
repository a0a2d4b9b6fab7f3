from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler

from distillery.training.schedules import (
    absolute_warmup_lr,
    cosine_lr,
    every_to_drops,
    ratio_warmup_factor,
    step_lr,
    stepwise_warmup_factor,
)

STEPS = 4  # optimizer steps an epoch, where the rate moves step by step


def mgd_plain(epoch):
    return step_lr(epoch, 0.1, [31, 61, 81])


def mgd_warmup(epoch):
    return step_lr(epoch, 0.1, [41, 71, 91]) * ratio_warmup_factor(epoch, 10)


def bake_imagenet(epoch):
    return cosine_lr(epoch, 0.4, 100) * ratio_warmup_factor(epoch, 5)


def bake_imagenet_b(epoch):
    return cosine_lr(epoch, 0.1, 100) * ratio_warmup_factor(epoch, 5)


def bake_small(epoch):
    return step_lr(epoch, 0.1, [101, 151])


def usi(epoch):
    return absolute_warmup_lr(epoch, 2e-3, 5, 1e-4) if epoch < 5 else cosine_lr(epoch, 2e-3, 300, 1e-6)


def ls_teacher_imagenet(epoch):
    return [step_lr(epoch, 0.1, every_to_drops(30, 90))]


def ls_student_imagenet(epoch):
    rate = step_lr(epoch, 0.1, every_to_drops(80, 200))
    return [rate * stepwise_warmup_factor(epoch * STEPS + step, 5 * STEPS) for step in range(STEPS)]


def ls_student_cub(epoch):
    return [step_lr(epoch, 0.01, every_to_drops(80, 200))]


def ls_teacher_cub(epoch):
    return [step_lr(epoch, 0.01, every_to_drops(30, 90))]


SCHEDULES = {
    schedule.__name__: schedule
    for schedule in (
        mgd_plain,
        mgd_warmup,
        bake_imagenet,
        bake_imagenet_b,
        bake_small,
        usi,
        ls_teacher_imagenet,
        ls_student_imagenet,
        ls_student_cub,
        ls_teacher_cub,
    )
}


@pytest.fixture(scope="module")
def stored():
    with np.load(Path(__file__).parents[1] / "golden" / "schedules.npz") as arrays:
        return {name: arrays[name] for name in arrays if name != "meta"}


def test_every_stored_schedule_is_here(stored):
    assert stored.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("name", SCHEDULES)
def test_composition_reproduces_the_original(stored, name):
    rates = [SCHEDULES[name](epoch) for epoch in range(len(stored[name]))]
    np.testing.assert_allclose(rates, stored[name], rtol=1e-9, atol=0)


def test_warmups_start_where_they_say_and_end_at_one():
    assert [ratio_warmup_factor(epoch, 4, start=0.2) for epoch in (0, 2, 4, 9)] == pytest.approx([0.2, 0.6, 1, 1])
    assert [absolute_warmup_lr(epoch, 1.0, 4, 0.2) for epoch in (0, 2, 4, 9)] == pytest.approx([0.2, 0.6, 1, 1])
    assert [stepwise_warmup_factor(step, 4) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]


@given(epochs=st.integers(1, 400), base=st.floats(1e-3, 1), share=st.floats(0, 1))
def test_cosine_is_timms_and_never_rises(epochs, base, share):
    import torch

    least = share * base
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    theirs = CosineLRScheduler(optimizer, t_initial=epochs, lr_min=least)
    rates = [cosine_lr(epoch, base, epochs, least) for epoch in range(epochs + 3)]
    for epoch in (0, epochs // 3, epochs - 1, epochs, epochs + 2):
        theirs.step(epoch)
        assert rates[epoch] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert all(after <= before + 1e-15 for before, after in pairwise(rates))


@given(every=st.integers(1, 50), epochs=st.integers(1, 200), ratio=st.floats(0.01, 1))
def test_drops_every_so_many_epochs(every, epochs, ratio):
    drops = every_to_drops(every, epochs)
    for epoch in range(epochs):
        assert step_lr(epoch, 0.5, drops, ratio) == pytest.approx(0.5 * ratio ** (epoch // every), rel=1e-12)
