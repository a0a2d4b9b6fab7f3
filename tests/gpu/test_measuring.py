"""What is measured on the GPU: metrics as on the CPU, times that wait for the kernels, and DALI's pixels."""

import time

import numpy as np
import pytest
import torch
from tests.gpu.conftest import tf32

from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.profile import measure_throughput, profile_run


def test_metrics_are_those_of_the_cpu(arena, device, report):
    arena.make("kd")
    experiment = arena.job("kd").experiment
    evaluate_run(experiment, "big", 0, arena.results, device=torch.device("cpu"))
    expected = evaluate_run(experiment, "kd", 0, arena.results, device=torch.device("cpu"))
    with tf32(False):
        found = evaluate_run(experiment, "kd", 0, arena.results, device=device)
    numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
    assert numbers
    report(nll_differs=abs(found["nll"] - expected["nll"]))
    for name, value in numbers.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_a_profile_has_the_devices_figures(arena, device, report):
    arena.make("ce")
    profile = profile_run(arena.job("ce").experiment, "ce", arena.results, device)
    report(
        **{name: profile[name] for name in ("device", "latency_ms", "throughput", "throughput_batch", "cpu_throughput")}
    )
    assert profile["cpu_throughput"] > 0
    assert (profile["gpu_throughput"] is not None) == (device.type == "cuda")


@pytest.mark.cuda_only
def test_throughput_waits_for_the_kernels(device, report):
    """As the GPU's own clock has it."""
    from torchvision.models import resnet18

    network = resnet18().to(device).eval()
    batch, throughput = measure_throughput(network, 224, device, 0.001)
    images = torch.randn(batch, 3, 224, 224, device=device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for _ in range(5):
            network(images)
        begin.record()
        for _ in range(20):
            network(images)
        end.record()
    torch.cuda.synchronize()
    by_events = 20 * batch / (begin.elapsed_time(end) / 1000)
    report(resnet18_images_a_second=throughput, by_events=by_events, peak_GiB=torch.cuda.max_memory_allocated() / 2**30)
    assert throughput == pytest.approx(by_events, rel=0.25)


def test_dali_gives_the_pixels_of_the_first_loader(tmp_path, device, report):
    pytest.importorskip("nvidia.dali", reason="nvidia.dali is not installed")
    from PIL import Image
    from pydantic import TypeAdapter

    from distillery.data.arrow import ArrowImages
    from distillery.data.dali import DaliLoader
    from distillery.data.loader import train_loader
    from distillery.data.orders import shuffled_order
    from distillery.data.prepare import prepare_dataset
    from distillery.data.samplers import GlobalBatches
    from distillery.data.transforms import train_transform
    from distillery.experiment.schema.augmentation import Augmentation
    from distillery.experiment.schema.dataset import Dataset
    from distillery.experiment.schema.recipe import Preprocess

    generator = np.random.Generator(np.random.Philox(key=0))
    for split in ("train", "val"):
        for number in range(64):
            small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            path = tmp_path / "raw" / split / f"class{number % 2}" / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=92)
    manifest = prepare_dataset("photos", Dataset(path=str(tmp_path / "raw")), tmp_path / "photos", 1)
    images = ArrowImages(tmp_path / "photos", manifest, "train")
    operations = [{"name": "random_resized_crop"}, {"name": "horizontal_flip"}]
    parsed = TypeAdapter(tuple[Augmentation, ...]).validate_python(operations)
    transform = train_transform(Preprocess(size=224), parsed)
    loaded, speeds = {}, {}
    for kind in ("torch", "dali"):
        batches = GlobalBatches(shuffled_order(64, 3), 64, 32, world_size=1, rank=0, accumulation=1, drop_last=True)
        if kind == "dali":
            loader = DaliLoader(images, transform, batches, 3, 4, device)
        else:
            loader = train_loader(images, transform, batches, 3, 4, device.type == "cuda")
        for _ in range(2):  # the first one starts workers and pipeline
            batches.start(0, 0)
            began = time.perf_counter()
            loaded[kind] = [batch.images.cpu().float() for batch in loader]
            speeds[kind] = 64 / (time.perf_counter() - began)
    differences = [(a - b).abs().mean().item() for a, b in zip(loaded["torch"], loaded["dali"], strict=True)]
    report(mean_levels_off=max(differences), torch_images_a_second=speeds["torch"], dali_images_a_second=speeds["dali"])
    assert max(differences) < 2
