"""The orders keep what the original samplers' streams of indices show (golden files); only the random draws differ."""

from collections import Counter

import numpy as np
import pytest

from distillery.data import orders
from distillery.data.orders import flow_sample, partner_order, repeated_order
from distillery.data.samplers import GlobalBatches


@pytest.fixture
def as_drawn(monkeypatch):
    """Let an order start from the permutation that the original drew."""

    def start_from(permutation):
        monkeypatch.setattr(orders, "addressed_permutation", lambda *_: np.asarray(permutation))

    return start_from


def classes(groups, labels):
    return [[labels[index] for index in group] for group in groups]


def check_groups(groups, labels):
    """What an anchor-and-partners order promises: partners of the anchor's class, distinct if possible."""
    for anchor, *partners in groups:
        others = set(np.flatnonzero(labels == labels[anchor])) - {anchor}
        assert set(partners) <= (others or {anchor})
        assert len(set(partners)) == len(partners) or len(others) < len(partners)


@pytest.mark.parametrize("epoch", [0, 3])
def test_repeated_augmentation_is_the_original_stream(golden, as_drawn, epoch):
    stored, meta = golden("usi_repeat_aug_sampler")
    ranks = [stored[f"epoch{epoch}_rank{rank}"] for rank in range(meta["world"])]
    whole = np.stack(ranks, axis=1).reshape(-1)
    seen = list(dict.fromkeys(whole.tolist()))
    as_drawn(seen + sorted(set(range(meta["n"])) - set(seen)))
    ours = repeated_order(meta["n"], 0, meta["repeats"], meta["selected_round"])(epoch)
    assert ours.tolist() == whole.tolist()
    assert set(Counter(ours.tolist()).values()) <= {meta["repeats"], len(ours) % meta["repeats"]}


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_the_flow_sample_is_the_original_stream(golden, as_drawn, epoch):
    stored, meta = golden("mgd_extra_sampler")
    as_drawn(stored[f"epoch{epoch}"])
    assert flow_sample(meta["n"], 0, epoch, 20_480).tolist() == stored[f"epoch{epoch}"].tolist()
    assert flow_sample(meta["n"], 0, epoch, 8).tolist() == stored[f"epoch{epoch}"][:8].tolist()


@pytest.mark.parametrize("name", ["bake_sampler_small_n12_m1", "bake_sampler_small_n16_m3"])
def test_bake_batches_have_the_anchors_of_the_small_scale_original(golden, as_drawn, name):
    stored, meta = golden(name)
    labels, partners = stored["labels"], meta["intra_imgs"]
    theirs = []
    for batch in stored["batches"]:
        batch = batch[batch >= 0]
        anchors, chosen = np.split(batch, [len(batch) // (partners + 1)])
        theirs.append(np.concatenate([anchors[:, None], chosen.reshape(len(anchors), partners)], axis=1))
    as_drawn(np.concatenate(theirs)[:, 0])

    order = partner_order(labels, 0, partners)
    samples = len(labels) * (partners + 1)
    batches = GlobalBatches(order, samples, meta["anchors_per_batch"] * (partners + 1), drop_last=False)
    ours = [np.array([sample.index for sample in batch]).reshape(-1, partners + 1) for batch in batches]
    assert len(ours) == meta["len"]
    for our_groups, their_groups in zip(ours, theirs, strict=True):
        assert our_groups[:, 0].tolist() == their_groups[:, 0].tolist()
        check_groups(our_groups, labels)
        check_groups(their_groups, labels)
        assert classes(our_groups, labels) == classes(their_groups, labels)


@pytest.mark.parametrize("epoch", [0, 1])
def test_bake_anchors_and_partners_stand_as_in_the_imagenet_original(golden, as_drawn, epoch):
    stored, meta = golden("bake_sampler_dist_W2_m1")
    labels, group, world = stored["labels"], meta["intra_imgs"] + 1, meta["world"]
    theirs = [stored[f"epoch{epoch}_rank{rank}"].reshape(-1, group) for rank in range(world)]
    as_drawn(np.stack([groups[:, 0] for groups in theirs], axis=1).reshape(-1))

    ours = partner_order(labels, 0, group - 1)(epoch).reshape(-1, group)
    assert ours[:, 0].tolist() == np.stack([groups[:, 0] for groups in theirs], axis=1).reshape(-1).tolist()
    assert len(ours) // world * group == stored["len"].item()
    check_groups(ours, labels)
    for groups in theirs:
        check_groups(groups, labels)
