"""A machine's GPUs, shared out: jobs side by side, and one page on all of them."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml

from distillery.cluster.gpus import all_devices
from distillery.paths import shipped

SEEN = (
    "import torch; print(torch.cuda.device_count(), torch.zeros(1, device='cuda').device, torch.cuda.get_device_name())"
)


def with_gpus(folder, count, share, *command):
    return subprocess.run(
        [sys.executable, "-m", "distillery.cluster.gpus", str(count), str(share), *command],
        env=os.environ | {"DISTILLERY_GPU_LOCKS": str(folder / "locks")},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.cuda_only
def test_nvidia_smi_lists_what_torch_finds(report):
    devices = all_devices()
    report(devices=", ".join(f"{device.label} {device.product}" for device in devices))
    if "CUDA_VISIBLE_DEVICES" not in os.environ and all(device.part is None for device in devices):
        assert len(devices) == torch.cuda.device_count()
        uuids = {f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(len(devices))}
        assert {device.uuid for device in devices} == uuids


@pytest.mark.cuda_only
def test_a_granted_device_is_the_only_one_that_torch_sees(tmp_path, report):
    done = with_gpus(tmp_path, 1, 1, sys.executable, "-c", SEEN)
    report(seen=done.stdout.strip())
    assert done.stdout.startswith("1 cuda:0"), done.stderr


@pytest.mark.cuda_only
def test_jobs_at_once_have_a_device_each(tmp_path, report):
    """More jobs than devices: each says which it has, and when."""
    count = len(all_devices())
    script = (
        "import os, time, torch; x = torch.zeros(1, device='cuda'); a = time.time(); time.sleep(1); "
        "print(os.environ['CUDA_VISIBLE_DEVICES'], a, time.time())"
    )
    with ThreadPoolExecutor(count + 1) as pool:
        done = list(pool.map(lambda _: with_gpus(tmp_path, 1, 1, sys.executable, "-c", script), range(count + 1)))
    held = [(name, float(a), float(b)) for name, a, b in (each.stdout.split() for each in done)]
    report(jobs=len(held), devices=len({name for name, *_ in held}))
    assert not any(
        one[0] == other[0] and one[1] < other[2] and other[1] < one[2]
        for place, one in enumerate(held)
        for other in held[:place]
    )


def test_a_page_on_all_gpus(arena, report):
    """Snakemake with the profile of a workstation: every run of a page, each on a GPU of its own."""
    folder = arena.folder
    runs = {f"small{n}": {"model": "cifar_resnet8", "recipe": "tiny"} for n in range(max(torch.cuda.device_count(), 2))}
    page = {"dataset": "tiny", "runs": runs, "tables": {"all": {"rows": list(runs), "columns": ["top1", "params"]}}}
    (folder / "config" / "page.yaml").write_text(yaml.safe_dump({"page": page}))
    (folder / "workflow").mkdir()
    (folder / "workflow" / "Snakefile").write_text(f"include: {str(shipped('workflow/Snakefile'))!r}\n")
    profile = shipped("workflow/profiles/local")
    command = ["snakemake", "--profile", str(profile), "--workflow-profile", "none", "results/tables/page.md"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=os.environ | {"DISTILLERY_GPU_LOCKS": str(folder / "locks"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    sessions = [json.loads((folder / f"results/page/{run}/seed0/run.json").read_text())["sessions"][0] for run in runs]
    report(runs=len(runs), devices=", ".join(sorted({session["device"] for session in sessions})))
    assert all((session["device"] == "cpu") == (not torch.cuda.is_available()) for session in sessions)
    assert all(session["processes"] == 1 for session in sessions)
