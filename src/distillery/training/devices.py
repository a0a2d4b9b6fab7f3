"""Devices and processes of a run: whatever torchrun started, or one."""

import os
import sys
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from lightning_fabric.strategies.strategy import Strategy

from distillery.accelerator import default_device
from distillery.cluster.signals import die_with_parent
from distillery.distill.collective import Collective, ProcessGroup
from distillery.errors import UserError
from distillery.experiment.schema.recipe import Recipe
from distillery.training.job import Job
from distillery.training.speed import Speed


def settle(job: Job) -> tuple[Job, Recipe]:
    """Decide what the machine's choices leave to ``auto``: the job with them, and the recipe as it is trained here.

    Raises:
        UserError: a choice cannot be had together with the recipe.
    """
    recipe, chosen = job.spec.recipe, job.machine.speed
    assert recipe is not None
    cuda = torch.cuda.is_available()
    precision = chosen.precision
    if precision == "auto":
        precision = "native" if cuda else "recipe"
    emulated = recipe.precision == "bf16-mixed" if cuda else recipe.precision != "32-true"
    if precision == "recipe" or (precision == "native" and not (emulated and not _has_bfloat16(cuda))):
        taken = recipe.precision
    else:
        taken = "32-true"
    unscales = cuda and taken == "16-mixed" and recipe.clip_norm is not None
    if unscales and chosen.fused == "on":
        raise UserError(
            f"{job.where}: fused=on does not go with precision 16-mixed and clip_norm: a fused optimizer scales "
            "gradients back in its own step, after they were to be clipped; leave it to fused=auto"
        )
    last, tf32, teacher = chosen.channels_last, chosen.tf32, chosen.teacher
    if last == "auto":
        last = "on" if recipe.channels_last else "off"
    if tf32 == "auto":
        tf32 = "convolutions"
    if teacher == "auto":
        teacher = "plain"
    fused = "off" if chosen.fused == "auto" else chosen.fused
    speed = Speed(precision, last, fused, tf32 if cuda else "off", teacher, chosen.compile)
    trained = recipe.model_copy(update={"precision": taken, "channels_last": last == "on"})
    return replace(job, machine=replace(job.machine, speed=speed)), trained


def _has_bfloat16(cuda: bool) -> bool:
    """Whether the device itself computes in bfloat16; else it is emulated, some times slower than float32."""
    if cuda:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def start_devices(
    recipe: Recipe, threads: int | None, *, unused_parameters: bool = False, speed: Speed | None = None
) -> Fabric:
    """Join the processes that torchrun started, or be the only one; on GPUs when there are any.

    ``speed`` has the machine's choices, decided; without any, torch stays as it is.

    Raises:
        UserError: there are GPUs, but fewer than processes, or an Apple GPU and several processes; or as by
            ``default_device``.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Less `use_deterministic_algorithms`, which also tells the compiler and imports it for that.
        torch.set_deterministic_debug_mode("warn")
        if speed is not None and speed.compile != "off":
            torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing here reads memory that it has not written, and writing it twice takes 6 % of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not recipe.deterministic
    if speed is not None and torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = speed.tf32 != "off"
        torch.backends.cuda.matmul.allow_tf32 = speed.tf32 == "on"
    accelerator = default_device().type
    meant = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if accelerator == "cpu" and meant not in ("", "-1") and os.environ.get("RANK", "0") == "0":
        print(
            f"distillery: warning: GPU {meant} is meant for this run, but torch {torch.__version__} finds none; see "
            "nvidia-smi; training on the CPU",
            file=sys.stderr,
            flush=True,
        )
    # Named, never guessed: in an interactive Slurm allocation, Fabric would take Slurm's task count for ours.
    environment: TorchElasticEnvironment | LightningEnvironment
    strategy: Strategy
    if TorchElasticEnvironment.detect():
        # Or it would go on alone on a GPU that is dealt out again.
        die_with_parent()
        environment, strategy = TorchElasticEnvironment(), DDPStrategy(find_unused_parameters=unused_parameters)
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if accelerator == "mps":
            raise UserError(f"--nproc-per-node: {local} processes cannot share an Apple GPU; train without torchrun")
        if accelerator == "cuda" and local > torch.cuda.device_count():
            raise UserError(
                f"--nproc-per-node: {local} is more than the GPUs that torch finds here "
                f"({torch.cuda.device_count()}); each process needs its own"
            )
    else:
        # A CPU has no number: to the one of number 0, torch copies each batch that is there already.
        device = torch.device("cpu") if accelerator == "cpu" else torch.device(accelerator, 0)
        environment, strategy = LightningEnvironment(), SingleDeviceStrategy(device)
        world, local = 1, 1
    fabric = Fabric(
        accelerator=accelerator,
        strategy=strategy,
        devices=local,
        num_nodes=world // local,
        # What autocast does on Apple's GPU was never seen.
        precision="32-true" if accelerator == "mps" else recipe.precision,
        plugins=[environment],
    )
    fabric.launch()
    used = fabric.strategy.precision.precision
    if used != recipe.precision:
        where = "an Apple GPU" if accelerator == "mps" else f"a {accelerator}"
        fabric.print(f"warning: precision: {recipe.precision} is not to be had on {where}; training in {used}")
    return fabric


def accumulation_steps(job: Job, recipe: Recipe, world_size: int) -> int:
    """How many micro-batches a step needs so that no device holds more than the machine allows.

    Raises:
        UserError: the global batch cannot be shared out evenly.
    """
    # Images that are mixed stay together.
    unit, what = (1, "images") if recipe.mix is None else (2, "pairs of images to mix")
    units = recipe.batch // unit
    if units % world_size:
        raise UserError(f"{job.where}.batch: {units} {what} cannot be shared out evenly to {world_size} devices")
    each = units // world_size
    limit = (job.machine.device_batch or unit * each) // unit
    if limit == 0:
        raise UserError(f"--device-batch: 1 image has none to be mixed with ({job.where}.mix); give 2 or more")
    return next(steps for steps in range(1, each + 1) if each % steps == 0 and each // steps <= limit)


def collective_of(fabric: Fabric) -> Collective:
    """How terms and measurements reach the other processes of a run."""
    return ProcessGroup() if fabric.world_size > 1 else Collective()
