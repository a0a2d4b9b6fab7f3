from itertools import pairwise

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
