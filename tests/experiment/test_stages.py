"""Stages that options name are those that the networks have, or refused in a line that says how many there are."""

import pytest

from distillery.errors import UserError
from distillery.experiment.stages import chosen_stage, distilled_stages, projected_stages


def test_stages_that_are_there_are_taken():
    assert distilled_stages(4, frozenset({1, 3}), "at") == [0, 2]
    assert chosen_stage(3, 2, "fitnet") == 2
    assert projected_stages(3, None, 1.5) == ((0, 1, 2), [1.5] * 4)
    assert projected_stages(4, [2], [1.5, 1.0]) == ((2,), [1.5, 1.0])


@pytest.mark.parametrize(
    ("look_up", "line"),
    [
        (
            lambda: distilled_stages(3, frozenset({0, 3}), "at"),
            r"^objective\.at\.ignore: no stage 3; .* have 3, counted",
        ),
        (lambda: distilled_stages(2, frozenset({0, 1}), "at"), r"^objective\.at\.ignore: \[0, 1\] leaves no stage"),
        (lambda: chosen_stage(3, 3, "fitnet"), r"^objective\.fitnet\.stage: no stage 3; .* have 3, counted from 0"),
        (lambda: projected_stages(3, [1, 4], 1.5), r"^objective\.ofa\.stages: no stage 4; the student has 3, counted"),
        (
            lambda: projected_stages(3, [1], [1.5]),
            r"^objective\.ofa\.eps: 1 values, but 1 stages and the logits need 2",
        ),
    ],
)
def test_others_are_refused(look_up, line):
    with pytest.raises(UserError, match=line):
        look_up()
