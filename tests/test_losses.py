"""The public face of the methods' mathematics."""

from importlib import import_module

import pytest

from distillery import losses
from distillery.experiment.schema.objective import TERMS


@pytest.mark.parametrize(
    "name",
    ["bake_loss", "bn_margin", "crd_loss", "cross_entropy_loss", "ensemble_targets", "kd_loss", "match_channels",
     "dkd_loss", "nkd_loss", "dist_loss", "wttm_loss", "wsld_loss", "uskd_loss", "hard_label_loss",
     "matching_cost", "overhaul_loss", "partial_l2", "reduce_channels", "rkd_loss"],
)  # fmt: skip
def test_every_method_has_its_functions(name):
    assert callable(getattr(losses, name))
    assert name in losses.__all__


@pytest.mark.parametrize("term", TERMS)
def test_every_term_has_a_public_function(term):
    file = import_module(TERMS[term].implementation.partition(":")[0])
    assert [name for name in losses.__all__ if getattr(losses, name).__module__ == file.__name__]


def test_nothing_private_and_no_term_is_public():
    assert not [name for name in losses.__all__ if name.startswith("_") or name in TERMS or name == "CRD"]


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(AttributeError, match=r"no function 'kd'; it has .*kd_loss"):
        losses.kd  # noqa: B018
