"""Terms across real processes (gloo): BAKE's global ensemble as the original computed it, one flow for all ranks."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric.plugins.precision.amp import MixedPrecision
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distillery.distill.collective import Collective, ProcessGroup
from distillery.distill.losses.bake import BAKE
from distillery.distill.losses.crd import CRD
from distillery.distill.losses.mgd import MGD
from distillery.distill.losses.pskd import PSKD
from distillery.distill.losses.similarity import Similarity
from distillery.distill.objective import WeightedTerms
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.student import FeatureExtractor, Learner
from distillery.distill.teacher import Teacher
from distillery.distill.term import StagePair, Term, TermContext
from distillery.models import create_model
from distillery.models.taps import Taps, plan_taps

GOLDEN = Path(__file__).parents[1] / "golden"

pytestmark = pytest.mark.slow


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
def test_global_ensembling_equals_the_original(name, in_processes):
    world_size = int(name.split("_W")[1].split("_")[0])
    in_processes(_global_bake, world_size, name)


def _gather_unequal(rank):
    rows = torch.arange(2 + rank, dtype=torch.float64) + 10 * rank
    gathered, own = ProcessGroup().all_gather(rows[:, None])
    assert gathered.flatten().tolist() == [0, 1, 10, 11, 12]
    assert torch.equal(gathered[own].flatten(), rows)
    assert ProcessGroup().all_reduce(torch.tensor(rank + 1.0)) == 3
    assert ProcessGroup().broadcast(torch.tensor(rank)) == 0


def test_ranks_with_unequal_shares_gather_in_order(in_processes):
    in_processes(_gather_unequal, 2)


def _contrasted(collective, parts):
    """Two steps of CRD in micro-batches; the term, and the sum of its losses over this process's images."""
    torch.manual_seed(0)
    term, total = CRD(negatives=5, features=4), 0.0
    labels = np.arange(12) % 3
    term.setup(TermContext(collective=collective, student_features=3, teacher_features=6, labels=labels, classes=3))
    generator = torch.Generator().manual_seed(1)
    for step in range(2):
        student, teacher = torch.randn(6, 3, generator=generator), torch.randn(6, 6, generator=generator)
        indices = torch.tensor([7, 2, 9, 2, 0, 7]) + step  # some images come twice
        for part in parts:
            none = torch.zeros(len(indices[part]), 1)
            outputs = [Outputs(none, (), features[part]) for features in (student, teacher)]
            total += term(StepInputs(outputs[0], none, outputs[1], indices_B=indices[part])).item() * len(none)
        term.end_step()
    return term, total


def _one_memory(rank, expected, total):
    term, own = _contrasted(ProcessGroup(), [slice(0, 2) if rank == 0 else slice(2, 6)])
    assert ProcessGroup().all_reduce(torch.tensor(own)).item() == pytest.approx(total, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(term.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    for memory in (term.memory_s, term.memory_t, term.Z_s[None]):
        both, _ = ProcessGroup().all_gather(memory)
        assert torch.equal(*both.chunk(2))


def test_every_rank_remembers_what_one_process_does(in_processes):
    term, total = _contrasted(Collective(), [slice(0, 6)])
    in_processes(_one_memory, 2, term.state_dict(), total)


def _refined(collective, parts):
    """Three steps of PS-KD in micro-batches; the term, and the sum of its losses over this process's images."""
    term, total = PSKD(), 0.0
    term.setup(TermContext(collective=collective, labels=np.arange(12) % 3, classes=3, epochs=2))
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        logits, indices = torch.randn(6, 3, generator=generator), torch.tensor([7, 2, 2, 0, 0, 7])
        for part in parts:
            inputs = StepInputs(Outputs(logits[part]), indices[part] % 3, epoch=step / 2, indices_B=indices[part])
            total += term(inputs).item() * len(indices[part])
        term.end_step()
    return term, total


def _one_past(rank, expected, total):
    # Of two micro-batches, each rank has a part of both; the second rank has none of the second.
    parts = [slice(0, 2), slice(4, 6)] if rank == 0 else [slice(2, 4)]
    term, own = _refined(ProcessGroup(), parts)
    assert ProcessGroup().all_reduce(torch.tensor(own)).item() == pytest.approx(total, rel=1e-5)
    assert torch.equal(term.past, expected)


def test_every_rank_remembers_the_predictions_that_one_process_does(in_processes):
    term, total = _refined(Collective(), [slice(0, 6)])
    in_processes(_one_past, 2, term.past, total)


def _queued(collective, gather, parts):
    """Three steps of the similarities; the queues, and the sum of the losses over this process's images."""
    torch.manual_seed(0)
    term, total = Similarity(queue=8, gather=gather), 0.0
    term.setup(TermContext(collective=collective, student_features=3, teacher_features=5))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        student, teacher = torch.randn(6, 3, generator=generator), torch.randn(6, 5, generator=generator)
        for part in parts:
            none = torch.zeros(len(student[part]), 1)
            inputs = StepInputs(Outputs(none, (), student[part]), none, Outputs(none, (), teacher[part]))
            total += term(inputs).item() * len(none)
        term.end_step()
    return term.queue, total


def _one_queue(rank, expected, total):
    queue, own = _queued(ProcessGroup(), True, [slice(0, 2) if rank == 0 else slice(2, 6)])
    assert ProcessGroup().all_reduce(torch.tensor(own)).item() == pytest.approx(total, rel=1e-5)
    assert torch.equal(queue, expected)


def test_a_gathered_queue_is_that_of_one_process(in_processes):
    queue, total = _queued(Collective(), True, [slice(0, 6)])
    in_processes(_one_queue, 2, queue, total)


def _own_queues(rank, alone):
    queue, own = _queued(ProcessGroup(), False, [slice(0, 2) if rank == 0 else slice(2, 6)])
    for kept, (expected, _) in zip(queue, alone, strict=True):
        assert torch.equal(kept, expected[0])
    assert own == pytest.approx(alone[rank][1], rel=1e-6)


def test_queues_of_their_own_are_as_each_process_alone_would_have_them_and_all_know_all(in_processes):
    alone = [_queued(Collective(), False, [part]) for part in (slice(0, 2), slice(2, 6))]
    in_processes(_own_queues, 2, alone)


class Looks(Term):
    """Sums up everything that it is shown."""

    def forward(self, inputs):
        assert isinstance(inputs, StepInputs)
        assert inputs.indices_B.tolist() == [3, 1]
        assert inputs.epoch == 1.5
        parties = (inputs.student, inputs.teacher, inputs.view.student, inputs.view.teacher)
        assert all(isinstance(party, Outputs) for party in parties)
        assert [len(party.stages) for party in parties] == [3, 3, 3, 3]
        assert inputs.teacher.embedding_BD is None
        return sum(party.logits_BC.mean() + sum(feature.mean() for feature in party.stages) for party in parties)


def _shown(rank):
    torch.manual_seed(0)
    network = create_model("cifar_resnet8", 5)
    taps = Taps(network, plan_taps(network, 8), frozenset({"stages"}))
    extractor = FeatureExtractor(network, nn.Identity(), taps, [(8, 8), (4, 4), (2, 2)], False)
    teacher = Teacher(FeatureExtractor(copy.deepcopy(network), nn.Identity(), None, [], False), "eval")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
    answers = teacher(images)._replace(stages=extractor(images).stages)
    answers = Outputs(answers.logits_BC, tuple(stage.detach() for stage in answers.stages))
    learner = DistributedDataParallel(
        Learner(extractor, WeightedTerms({"looks": Looks()}, {"looks": lambda epoch: 1.0}))
    )
    shown = (images, torch.tensor([0, 1]), answers, 1.0, 1.5, torch.tensor([3, 1]), (images.flip(3), answers))
    precision = MixedPrecision("bf16-mixed", "cpu")
    with precision.forward_context():
        values, logits_BC = learner(*precision.convert_input(shown))
    values["loss"].backward()
    assert logits_BC.shape == (2, 5)
    gradient = network.conv1.weight.grad
    both, _ = ProcessGroup().all_gather(gradient[None])
    assert torch.equal(*both)


def test_named_tuples_pass_precision_and_ddp_as_they_are(in_processes):
    in_processes(_shown, 2)


def _batches(parts):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(10, channels, 4, 4, generator=generator) for channels in (4, 9))
    for part in parts:
        empty = torch.zeros(len(student[part]), 1)
        yield StepInputs(Outputs(empty, (student[part],)), empty, Outputs(empty, (teacher[part],)))


def _set_up(collective):
    term = MGD()
    term.setup(TermContext((StagePair(4, 9, None),), collective))
    return term


def _one_flow(rank, expected):
    term = _set_up(ProcessGroup())
    term.begin_epoch(0, lambda limit: _batches([slice(0, 7)] if rank == 0 else [slice(7, 8), slice(8, 10)]))
    assert term.flow0.tolist() == expected


def test_every_rank_gets_the_flow_that_one_process_finds(in_processes):
    alone = _set_up(Collective())
    alone.begin_epoch(0, lambda limit: _batches([slice(0, 10)]))
    in_processes(_one_flow, 2, alone.flow0.tolist())
