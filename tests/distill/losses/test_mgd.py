import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from distillery.distill.losses.cross_entropy import cross_entropy_loss
from distillery.distill.losses.kd import kd_loss
from distillery.distill.losses.mgd import (
    drop_channels,
    match_channels,
    matching_cost,
    reduce_channels,
)
from distillery.distill.losses.partial_l2 import bn_margin, partial_l2, stage_weights
from distillery.errors import UserError

STAGES = [f"mgd_stage_s{s}_t{t}" for s, t in [(4, 8), (8, 8), (6, 15), (16, 64), (32, 128), (30, 128)]]
MULTI = ["mgd_multi_amp_kd", "mgd_multi_sm_kd", "mgd_multi_sp_kd", "mgd_multi_amp_ign"]


def raw_flow(stored, key, students):
    """A stored flow, group after group, as (S, G) in its own order; sm's ends with the mates of its padding rows."""
    flow = stored[key]
    if stored.meta.get("reducer") == "sm":
        flow = flow[:students]
    return flow.reshape(-1, students).T


def normalised(feature, weight=None, bias=None):
    return F.batch_norm(feature, None, None, weight, bias, training=True, eps=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_cost_reproduces_the_original(vectors, precision, name):
    stored = vectors(name, precision.dtype)
    with precision.context():
        cost = sum(matching_cost(s, t) for s, t in zip(stored["upd_s"], stored["upd_t"], strict=True))
    assert cost.dtype == torch.float64
    precision.close(cost, stored.exact("adj_sum"))
    if precision.dtype == torch.float64:
        torch.testing.assert_close(cost, stored["adj_sum"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", STAGES)
def test_flow_reproduces_the_original(vectors, name):
    stored = vectors(name)
    students, teachers = stored["adj_sum"].shape
    mean_cost = stored["adj_sum"] / stored["num_imgs"]
    integer_cost = (1e5 * mean_cost).long()
    flow = match_channels(mean_cost, "amp", columns=students * (teachers // students))
    assert torch.equal(flow, stored["groups_sorted"])
    assert integer_cost.gather(1, flow).sum() == stored["flow_obj_int"]
    single = match_channels(mean_cost, "sm")
    assert torch.equal(single[:, 0], stored["sm_flow"])
    assert integer_cost.gather(1, single).sum() == stored["sm_obj_int"]


def test_all_columns_take_part_unless_cut(vectors):
    stored = vectors("mgd_stage_s6_t15")
    mean_cost = stored["adj_sum"] / stored["num_imgs"]
    whole, cut = match_channels(mean_cost, "amp"), match_channels(mean_cost, "amp", columns=12)
    assert cut.max() < 12 <= whole.max()
    integer_cost = (1e5 * mean_cost).long()
    assert integer_cost.gather(1, whole).sum() < integer_cost.gather(1, cut).sum()


@pytest.mark.parametrize("name", STAGES)
def test_margins_reproduce_the_original(vectors, name):
    stored = vectors(name, torch.float32)
    margin = bn_margin(stored["t_bn_weight"], stored["t_bn_bias"])
    torch.testing.assert_close(margin, stored["margin"], rtol=2e-7, atol=0)


@pytest.mark.parametrize("reducer", ["amp", "rd", "sm", "sp"])
@pytest.mark.parametrize("name", STAGES)
def test_one_stage_reproduces_the_original(vectors, precision, name, reducer):
    stored = vectors(name, precision.dtype)
    students = stored.meta["C_s"]
    flow = raw_flow(stored, "sm_flow" if reducer == "sm" else "flow", students)
    feature, margin = stored["feat_t"], stored["margin"]
    leaves = [stored.leaf(key) for key in ("feat_s", "s_bn_weight", "s_bn_bias")]
    with precision.context():
        if reducer == "rd":
            picks = stored["rd_tmask"].reshape(len(feature), students, *feature.shape[2:])
            target, reduced = drop_channels(feature, margin, flow, picks, stored["rd_mmask"].flatten())
        else:
            target, reduced = reduce_channels(feature, margin, flow, reducer)
        loss = partial_l2(normalised(*leaves), target, reduced)
    # Rounded to 8 bits, near-ties of opposite signs change the winner of amp at a few pixels.
    slack = 5 if reducer == "amp" and precision.dtype == torch.bfloat16 else 1
    precision.close(target, stored.exact(f"{reducer}_t"), slack)
    precision.close(reduced, stored.exact(f"{reducer}_m"))
    precision.close(loss, stored.exact(f"{reducer}_loss"), slack)
    loss.backward()
    for leaf, key in zip(leaves, ("feat_s", "bn_weight", "bn_bias"), strict=True):
        precision.close(leaf.grad, stored.exact(f"{reducer}_grad_{key}"), slack)


@pytest.mark.parametrize("name", STAGES)
def test_random_drop_draws_pixels_then_margins(vectors, name):
    stored = vectors(name)
    flow = raw_flow(stored, "flow", stored.meta["C_s"])
    generator = torch.Generator().manual_seed(stored.meta["rd_seed"])
    target, margin = reduce_channels(stored["feat_t"], stored["margin"], flow, "rd", generator)
    torch.testing.assert_close(target, stored["rd_t"], rtol=0, atol=0)
    torch.testing.assert_close(margin, stored["rd_m"], rtol=0, atol=0)


@pytest.mark.parametrize("name", MULTI)
def test_four_stages_reproduce_the_original(vectors, precision, name):
    stored = vectors(name, precision.dtype)
    meta = stored.meta
    features = [stored.leaf(f"feat_s{i}") for i in range(4)]
    logits = stored.leaf("s_logits")
    with precision.context():
        distances = []
        for i, weight in enumerate(stage_weights(4)):
            if i in meta["ignore_inds"]:
                continue
            flow = raw_flow(stored, f"flow{i}", meta["s_channels"][i])
            target, margin = reduce_channels(stored[f"feat_t{i}"], stored[f"margin{i}"], flow, meta["reducer"])
            distances.append(weight * partial_l2(normalised(features[i]), target, margin))
        distill = torch.stack(distances).sum()
        total = cross_entropy_loss(logits, stored["labels"]) + distill / meta["batch_size_arg"] / meta["loss_factor"]
        if meta["with_kd"]:
            total = total + kd_loss(logits, stored["t_logits"], meta["T"])
    precision.close(distill, stored.exact("distill_loss_sum"))
    precision.close(total, stored.exact("total"))
    total.backward()
    precision.close(logits.grad, stored.exact("grad_s_logits"))
    for i, feature in enumerate(features):
        if i not in meta["ignore_inds"]:
            precision.close(feature.grad, stored.exact(f"grad_feat_s{i}"))


@pytest.mark.parametrize("name", MULTI)
def test_flows_of_four_stages_reproduce_the_original(vectors, name):
    stored = vectors(name)
    reducer = stored.meta["reducer"]
    for i, (students, teachers) in enumerate(zip(stored.meta["s_channels"], stored.meta["t_channels"], strict=True)):
        if i in stored.meta["ignore_inds"]:
            continue
        mean_cost = matching_cost(stored[f"upd_s{i}"], stored[f"upd_t{i}"]) / len(stored[f"upd_s{i}"])
        columns = None if reducer == "sm" else students * (teachers // students)
        flow = match_channels(mean_cost, reducer, columns)
        assert torch.equal(flow, raw_flow(stored, f"flow{i}", students).sort(dim=1).values)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 13), st.integers(1, 3), st.integers(1, 3))


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@given(shape=shapes, seed=st.integers(0, 2**30))
def test_cost_is_the_squared_distance_of_unit_maps(shape, seed):
    batch, students, teachers, height, width = shape
    s, t = draw(seed, batch, students, height, width), draw(seed + 1, batch, teachers, height, width)
    s[0, 0] = 0  # a dead channel
    cost = matching_cost(s, t)
    expected = np.zeros((students, teachers))
    for image in range(batch):
        unit_s, unit_t = (x[image].flatten(1).numpy() for x in (s, t))
        unit_s = unit_s / np.maximum(np.linalg.norm(unit_s, axis=1, keepdims=True), 1e-12)
        unit_t = unit_t / np.maximum(np.linalg.norm(unit_t, axis=1, keepdims=True), 1e-12)
        expected += 2 - 2 * unit_s @ unit_t.T
    np.testing.assert_allclose(cost, expected, rtol=1e-10, atol=1e-12)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(matching_cost(s[order], t[order]), cost)
    channels_last = (x.to(memory_format=torch.channels_last) for x in (s, t))
    torch.testing.assert_close(matching_cost(*channels_last), cost)


@settings(deadline=None)
@given(students=st.integers(1, 9), teachers=st.integers(1, 20), seed=st.integers(0, 2**30))
def test_flow_serves_everyone_once_or_evenly(students, teachers, seed):
    mean_cost = 2 + draw(seed, students, teachers).clamp(-2, 2)
    for reducer in ("amp", "rd", "sm", "sp"):
        flow = match_channels(mean_cost, reducer)
        group = 1 if reducer == "sm" or teachers < students else teachers // students
        assert flow.shape == (students, group)
        assert flow.dtype == torch.int64
        served = flow.flatten().bincount(minlength=teachers)
        assert served.max() <= -(-students * group // teachers)
        assert served.min() >= students * group // teachers
    order = torch.randperm(students, generator=torch.Generator().manual_seed(seed))
    integer_cost = (1e5 * mean_cost).long()
    shuffled = match_channels(mean_cost[order], "amp")
    assert integer_cost[order].gather(1, shuffled).sum() == integer_cost.gather(1, flow_of(mean_cost)).sum()


def flow_of(mean_cost):
    return match_channels(mean_cost, "amp")


def test_equal_channels_find_each_other():
    feature = draw(0, 4, 12, 5, 5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    flow = match_channels(matching_cost(feature, feature[:, order]) / 4, "amp")
    assert torch.equal(order[flow[:, 0]], torch.arange(12))


@pytest.mark.slow
@given(seed=st.integers(0, 2**30), students=st.integers(1, 5), group=st.integers(1, 4))
def test_reducers_choose_as_their_names_say(seed, students, group):
    feature, margin = draw(seed, 2, students * group + 1, 2, 3), -draw(seed, 1, students * group + 1, 1, 1).abs()
    order = torch.randperm(students * group + 1, generator=torch.Generator().manual_seed(seed))
    flow = order[: students * group].reshape(students, group)
    members = feature.numpy()[:, flow.numpy()]  # (B, S, G, H, W)
    margins = margin.flatten().numpy()[flow.numpy()]

    target, reduced = reduce_channels(feature, margin, flow, "amp")
    winners = np.abs(members).argmax(axis=2)[:, :, None]
    np.testing.assert_array_equal(target, np.take_along_axis(members, winners, axis=2)[:, :, 0])
    np.testing.assert_allclose(reduced.flatten(), margins.mean(axis=1))

    target, reduced = reduce_channels(feature, margin, flow, "sp")
    np.testing.assert_array_equal(target, members.max(axis=2))
    np.testing.assert_array_equal(reduced.flatten(), margins.max(axis=1))

    target, reduced = reduce_channels(feature, margin, flow, "rd", torch.Generator().manual_seed(seed))
    assert (members == target.numpy()[:, :, None]).any(axis=2).all()
    assert (margins == reduced.numpy().reshape(students, 1)).any(axis=1).all()

    target, reduced = reduce_channels(feature, margin, flow[:, :1], "sm")
    np.testing.assert_array_equal(target, members[:, :, 0])
    assert reduced.shape == (1, students, 1, 1)
    assert not target.requires_grad


def test_random_drop_draws_every_member_alike():
    feature = torch.arange(4.0).reshape(1, 4, 1, 1).expand(50, 4, 10, 10)
    target, _ = reduce_channels(
        feature, torch.zeros(1, 4, 1, 1), torch.tensor([[0, 2], [1, 3]]), "rd", torch.Generator()
    )
    for channel, members in enumerate([(0, 2), (1, 3)]):
        share = [(target[:, channel] == member).double().mean().item() for member in members]
        assert share == pytest.approx([0.5, 0.5], abs=0.03)


def test_amp_takes_the_first_of_equals():
    feature = torch.tensor([-2.0, 2.0, 1.0]).reshape(1, 3, 1, 1)
    target, _ = reduce_channels(feature, torch.zeros(1, 3, 1, 1), torch.tensor([[0, 1, 2]]), "amp")
    assert target.item() == -2.0


def test_gradient_is_the_derivative():
    teacher, margin = draw(1, 2, 6, 3, 3), torch.full((1, 6, 1, 1), -0.5)
    target, reduced = reduce_channels(teacher, margin, torch.tensor([[0, 3], [1, 2], [4, 5]]), "amp")
    leaves = [draw(2, 2, 3, 3, 3), draw(3, 3), draw(4, 3)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda *x: partial_l2(normalised(*x), target, reduced), leaves)


def test_broken_features_are_named():
    with pytest.raises(UserError, match=r"matching cost.*nan or infinite.*diverged"):
        match_channels(torch.full((2, 4), torch.nan), "amp")


def test_unknown_reducer_is_named():
    with pytest.raises(UserError, match=r"objective\.mgd\.reducer: 'max'; should be one of amp, rd, sm, sp"):
        reduce_channels(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), torch.tensor([[0], [1]]), "max")
