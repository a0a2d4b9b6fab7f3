"""What every term costs: seconds and memory of a training step with it over those of the same step without.

    python benchmarks/terms.py [--only TERM ...] [--pair 32|224] [--batch N] [--rounds 5] [--steps 4]

The step without is that of `{ce: {}, kd: {}}`, so that the teacher's own pass is in both; the step with has the term
besides. Steps are the loop's own, of a training built as `distillery train` builds it; images lie on the device.
Both take turns; the median of the rounds' ratios counts. What acts before an epoch (MGD's matching) is not counted.
State is what a term trains and remembers; memory is a step's peak above what lies on the GPU between steps.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from workplace import DEVICE, Case, clock, engine_step, quiet

from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS, Objective
from distillery.training.loop import Training

BASE = "ce: {}, kd: {}"
# What a term needs in a workplace of one batch, where its defaults are for whole data sets.
OPTIONS = {"bake": "partners: 0"}
PAIRS = {
    "32": ("ResNet-56 -> ResNet-20, 32 px", "cifar_resnet56", "cifar_resnet20", 32, {"cpu": 32, "cuda": 64}),
    "224": (
        "ResNet-50 -> ResNet-18, 224 px",
        "torchvision:resnet50",
        "torchvision:resnet18",
        224,
        {"cpu": 4, "cuda": 64},
    ),
}


def runs_of(terms: list[str]) -> dict[str, str]:
    """The objective without a term, and with each."""
    return {"base": f"{{{BASE}}}"} | {term: f"{{{BASE}, {term}: {{{OPTIONS.get(term, '')}}}}}" for term in terms}


def build(case: Case, run: str) -> tuple[Training, Callable[[], object]]:
    """A run's training, and its step."""
    training, objective = case.training(run), case.job(run).spec.objective
    assert objective is not None
    training.bare.objective.begin_epoch(0, training.calibration_batches(0))
    needs = objective.needs()
    return training, engine_step(training, case.batch_of(view=needs.view or needs.partner))


def state_bytes(training: Training) -> int:
    """What a training's terms, and the head that is deployed, hold."""
    tensors = [*training.bare.objective.parameters(), *training.bare.objective.buffers()]
    tensors += getattr(training.bare.student, "head", torch.nn.Identity()).parameters()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def take(step: Callable[[], object], steps: int) -> float:
    """Seconds a step; on CPUs those of the processor."""
    began = clock()
    for _ in range(steps):
        step()
    return (clock() - began) / steps


def peak_bytes(step: Callable[[], object]) -> int | None:
    """What a step needs above what lies on the GPU between steps; None without a GPU."""
    take(step, 2)
    if DEVICE.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    resident = torch.cuda.memory_allocated()
    take(step, 1)
    return torch.cuda.max_memory_allocated() - resident


def measure(case: Case, term: str, steps: int, rounds: int) -> list[object]:
    """The table's row of a term."""
    with quiet():
        base, (training, step) = build(case, "base")[1], build(case, term)
    without, with_it = peak_bytes(base), peak_bytes(step)
    taken = [[take(way, steps) for way in (base, step)] for _ in range(rounds)]
    extra = statistics.median(100 * (own / plain - 1) for plain, own in taken)
    memory = None if without is None or with_it is None else (with_it - without) / 2**20
    return [term, 1e3 * statistics.median(own for _, own in taken), extra, state_bytes(training) / 2**20, memory]


def main() -> None:
    """Print a table for each pair."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    terms = [term for term in TERMS if term not in Objective.model_validate({"ce": {}, "kd": {}}).terms()]
    parser.add_argument("--only", nargs="+", choices=terms, default=terms, metavar="TERM", help="these terms (all)")
    parser.add_argument("--pair", choices=PAIRS, help="one of the two, by its image size")
    parser.add_argument("--batch", type=int, help="images in a step (on a CPU 32 and 4, on a GPU 64)")
    parser.add_argument("--steps", type=int, default=4, help="of each way in a round (4)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (5)")
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    for key, (title, teacher, student, size, batches) in PAIRS.items():
        if given.pair not in (None, key):
            continue
        batch = given.batch or batches[DEVICE.type]
        print(f"\n{title}, batch {batch}; {name}, torch {torch.__version__}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            case = Case(Path(folder), student, teacher, size, batch, runs_of(given.only))
            rows = []
            for term in given.only:
                try:
                    rows.append(measure(case, term, given.steps, given.rounds))
                except UserError as error:  # a term that wants what this workplace does not have
                    print(f"{term}: left out: {error}", flush=True)
        headers = ["term", "ms a step", "extra %", "state MiB", "extra memory MiB"]
        print(tabulate(rows, headers, tablefmt="github", floatfmt=("", ".1f", "+.1f", ".2f", "+.0f"), missingval="-"))


if __name__ == "__main__":
    main()
