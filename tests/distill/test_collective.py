"""Terms across real processes (gloo): BAKE's global ensemble as the original computed it, one flow for all ranks."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distillery.distill.collective import Collective, ProcessGroup
from distillery.distill.losses.bake import BAKE
from distillery.distill.losses.mgd import MGD
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext

GOLDEN = Path(__file__).parents[1] / "golden"

pytestmark = pytest.mark.slow


def in_processes(work, world_size, *arguments):
    """Run ``work(rank, *arguments)`` in so many processes that form one group."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Forked, because spawned processes could not import a test module.
    mp.start_processes(_join, args=(work, world_size, port, arguments), nprocs=world_size, start_method="fork")


def _join(rank, work, world_size, port, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    try:
        work(rank, *arguments)
    finally:
        dist.destroy_process_group()


def _global_bake(rank, name):
    data = np.load(GOLDEN / name, allow_pickle=False)
    meta = json.loads(str(data["meta"]))
    term = BAKE(omega=meta["omega"], temperature=meta["T"])
    term.setup(TermContext(collective=ProcessGroup()))
    logits_BC = torch.from_numpy(data["logits"][rank]).requires_grad_()
    inputs = StepInputs(
        Outputs(logits_BC, embedding_BD=torch.from_numpy(data["feats"][rank])), torch.from_numpy(data["labels"][rank])
    )
    value = term(inputs)
    torch.testing.assert_close(value, torch.tensor(data["kd_loss"][rank]), rtol=1e-9, atol=0)
    total = torch.nn.functional.cross_entropy(logits_BC, inputs.target) + meta["lamda"] * value
    total.backward()
    torch.testing.assert_close(logits_BC.grad, torch.from_numpy(data["grad_total_logits"][rank]), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("bake_global_*")))
def test_global_ensembling_equals_the_original(name):
    world_size = int(name.split("_W")[1].split("_")[0])
    in_processes(_global_bake, world_size, name)


def _gather_unequal(rank):
    rows = torch.arange(2 + rank, dtype=torch.float64) + 10 * rank
    gathered, own = ProcessGroup().all_gather(rows[:, None])
    assert gathered.flatten().tolist() == [0, 1, 10, 11, 12]
    assert torch.equal(gathered[own].flatten(), rows)
    assert ProcessGroup().all_reduce(torch.tensor(rank + 1.0)) == 3
    assert ProcessGroup().broadcast(torch.tensor(rank)) == 0


def test_ranks_with_unequal_shares_gather_in_order():
    in_processes(_gather_unequal, 2)


def _lessons(parts):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(10, channels, 4, 4, generator=generator) for channels in (4, 9))
    for part in parts:
        empty = torch.zeros(len(student[part]), 1)
        yield StepInputs(Outputs(empty, (student[part],)), empty, Outputs(empty, (teacher[part],)))


def _settled(collective):
    term = MGD()
    term.setup(TermContext((StagePair(4, 9, None),), collective))
    return term


def _one_flow(rank, expected):
    term = _settled(ProcessGroup())
    term.begin_epoch(0, lambda limit: _lessons([slice(0, 7)] if rank == 0 else [slice(7, 8), slice(8, 10)]))
    assert term.flow0.tolist() == expected


def test_every_rank_gets_the_flow_that_one_process_finds():
    alone = _settled(Collective())
    alone.begin_epoch(0, lambda limit: _lessons([slice(0, 10)]))
    in_processes(_one_flow, 2, alone.flow0.tolist())
