"""Stages of two networks brought together."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillery.models import create_model
from distillery.models.taps import common_size, describe_pair, match_size, pair_stages, plan_taps
from distillery.models.taps.plan import Source, TapPlan, TapPoint


def plan_of(sides):
    source = Source("layer", "output", 0, 1, 1, False, None, 8)
    points = tuple(
        TapPoint(stage, f"stage{stage}", (source,), None, "BCHW", 0, 8, side, side, None)
        for stage, side in enumerate(sides)
    )
    return TapPlan("net", 224, "traced", points, source, 8)


def stages(pairs):
    return [(teacher.stage, student.stage) for teacher, student in pairs]


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ([56, 28, 14, 7], [28, 14, 14, 7], [(0, 0), (1, 1), (2, 2), (3, 3)]),  # equal numbers: one to one
        ([56, 28, 14, 7], [32, 16, 8], [(1, 0), (2, 1), (3, 2)]),
        ([32, 16, 8], [56, 28, 14, 7], [(0, 1), (1, 2), (2, 3)]),
        ([56, 28, 14, 7], [56, 14], [(0, 0), (3, 1)]),
        ([56, 28, 14, 7], [7], [(3, 0)]),
        ([14, 14, 14, 14], [28, 14], [(2, 0), (3, 1)]),  # ties: towards the end
    ],
)
def test_stages_are_paired_from_the_end(teacher, student, expected):
    assert stages(pair_stages(plan_of(teacher), plan_of(student))) == expected


sides = st.lists(st.sampled_from([4, 7, 8, 14, 28, 56, 112]), min_size=1, max_size=5).map(
    lambda chosen: sorted(chosen, reverse=True)
)


@given(sides, sides)
def test_pairs_are_ordered_complete_and_nearest(teacher, student):
    pairs = stages(pair_stages(plan_of(teacher), plan_of(student)))
    assert len(pairs) == min(len(teacher), len(student))
    assert pairs[-1] == (len(teacher) - 1, len(student) - 1)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(pairs))

    def distance(pairs):
        return sum(abs(math.log2(teacher[t] / student[s])) for t, s in pairs)

    assert pairs == [(t, s) for s, t in stages(pair_stages(plan_of(student), plan_of(teacher)))]
    short, long = sorted((teacher, student), key=len)
    for chosen in itertools.combinations(range(len(long) - 1), len(short) - 1):
        other = list(enumerate((*chosen, len(long) - 1)))
        other = other if short is teacher else [(t, s) for s, t in other]
        assert distance(pairs) <= distance(other) + 1e-6


def test_the_larger_map_is_pooled_to_the_smaller():
    teacher, student = plan_of([8]).points[0], plan_of([4]).points[0]
    feature = torch.arange(64.0).reshape(1, 1, 8, 8)
    size = common_size(teacher, student)
    assert size == common_size(student, teacher) == (4, 4)
    pooled = match_size(feature, size)
    assert pooled[0, 0, 0, 0] == feature[0, 0, :2, :2].mean()
    assert match_size(pooled, size) is pooled


@pytest.mark.slow
def test_the_plan_reads_as_a_table():
    with torch.device("meta"):
        teacher = plan_taps(create_model("torchvision:resnet50", 1000), 224, "resnet50")
        student = plan_taps(create_model("torchvision:mobilenet_v2", 1000), 224, "mobilenet_v2")
    lines = describe_pair(teacher, student).splitlines()
    assert lines[0] == "teacher resnet50 at 224x224: stages by table, embedding of 2048 features, the mean of 2048@7x7"
    assert " ".join(lines[3].split()) == (
        "stage teacher tap before shape norm student tap before shape norm compared at channels each"
    )
    assert "layer2.3.relu input 3/3  relu  " in lines[5]
    assert "512@28x28" in lines[5]
    assert "192@14x14" in lines[5]
    assert lines[5].endswith("14x14        2.67")
    assert all(line == line.rstrip() for line in lines)
