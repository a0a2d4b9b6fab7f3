import pytest
import torch

from distillery.errors import UserError
from distillery.training.devices import start_devices


@pytest.mark.parametrize(("gpus", "said"), [(1, r"2 is more than the GPUs that torch finds here \(1\)"), (0, None)])
def test_more_processes_than_gpus_are_refused(workplace, monkeypatch, gpus, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("distillery.training.devices.Fabric.launch", lambda self: None)
    launched = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    for name, value in (launched | {"TORCHELASTIC_RUN_ID": "one"}).items():
        monkeypatch.setenv(name, str(value))
    recipe = workplace.job().spec.recipe
    if said is None:
        start_devices(recipe, None)
        return
    with pytest.raises(UserError, match=f"^--nproc-per-node: {said}"):
        start_devices(recipe, None)


def test_a_batch_is_not_copied_on_a_cpu(workplace, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fabric, images = start_devices(workplace.job().spec.recipe, None), torch.zeros(2)
    assert images.to(fabric.device) is images
