"""The losses reproduce the originals' stored values on the GPU: the very tests of the CPU, with tensors there."""

from dataclasses import dataclass

import pytest
import torch
from tests.distill.conftest import PRECISIONS, Precision
from tests.distill.losses.test_bake import test_one_process_reproduces_the_original as test_bake  # noqa: F401
from tests.distill.losses.test_cross_entropy import test_mixed_labels_reproduce_the_original as test_mixed  # noqa: F401
from tests.distill.losses.test_cross_entropy import test_smoothed_labels_reproduce_the_original as test_ce  # noqa: F401
from tests.distill.losses.test_kd import test_every_temperature_reproduces_the_original as test_kd  # noqa: F401
from tests.distill.losses.test_kd import test_usi_is_soft_cross_entropy_and_kd_at_temperature_one as test_usi  # noqa: F401
from tests.distill.losses.test_mgd import test_cost_reproduces_the_original as test_mgd_cost  # noqa: F401
from tests.distill.losses.test_mgd import test_four_stages_reproduce_the_original as test_mgd  # noqa: F401
from tests.distill.losses.test_mgd import test_one_stage_reproduces_the_original as test_mgd_stage  # noqa: F401
from tests.distill.losses.test_overhaul import test_four_stages_reproduce_the_original as test_overhaul  # noqa: F401
from tests.distill.losses.test_partial_l2 import test_distance_reproduces_the_original as test_partial_l2  # noqa: F401
from tests.distill.test_golden_zoo import test_losses_parts_and_gradients_equal_the_authors as test_zoo  # noqa: F401
from tests.gpu.conftest import tf32


@dataclass(frozen=True)
class There(Precision):
    """A precision of the device that tensors are made on."""

    def context(self):
        return torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=self.autocast)


@pytest.fixture(params=PRECISIONS.values(), ids=PRECISIONS)
def precision(request):
    return There(**vars(request.param))


@pytest.fixture
def vectors():
    from tests.distill.conftest import Vectors

    return lambda name, dtype=torch.float64: Vectors(name, dtype)


@pytest.fixture(autouse=True)
def tensors_there(device, monkeypatch):
    from_numpy = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: from_numpy(array).to(device))
    with device, tf32(False):
        yield
