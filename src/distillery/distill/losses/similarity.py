"""Distillation without labels, from a giant's embeddings: which images, and which pixels, are alike.

As LightlyTrain 0.17 has it (https://github.com/lightly-ai/lightly-train, ``_methods/distillation`` and
``_methods/distillationv3``).

B batch, S/T channels of the student's and the teacher's embedding, K rows of the queue, P processes, H W pixels, M
pixels of the teacher's last map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.losses.stages import unit
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import OwnStage, Term, TermContext
from distillery.errors import UserError

# Rows of the queue for data sets of fewer images than so many; the largest for all others.
QUEUES = {50: 16, 100: 32, 250: 64, 500: 128, 1_000: 256, 2_000: 512, 4_000: 1_024, 10_000: 2_048, 20_000: 4_096}
LARGEST_QUEUE = 8_192


def default_queue(images: int) -> int:
    """How many rows a queue has for so many training images: a quarter to a half of them, and at most 8,192."""
    return next((rows for below, rows in QUEUES.items() if images < below), LARGEST_QUEUE)


@full_precision
def similarity_loss(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float = 0.07) -> Tensor:
    """Mean over B of ``KL(softmax(Q t / temperature) || softmax(Q s / temperature))``, a scalar.

    s and t are the embeddings at length 1.

    Args:
        student: the student's embeddings as the projector made them, (B, T).
        teacher: embeddings, (B, T); detached.
        queue: Q, the teacher's embeddings at length 1, this batch's in front, (K, T); detached.
        temperature: above 0, of both networks.
    """
    queue_KT = queue.detach() / temperature
    return _divergence(unit(student) @ queue_KT.T, unit(teacher.detach()) @ queue_KT.T)


@full_precision
def similarity_local_loss(student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    """The same of every pixel's similarities to all pixels of its image, the mean over B x M, a scalar.

    Args:
        student: the student's map as the projector made it, (B, T, H, W); resized bilinearly to the teacher's.
        teacher: a map, or a transformer's tokens on their grid, (B, T, H', W'); detached.
        temperature: above 0, of both networks.
    """
    resized = F.interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
    student_BMT, teacher_BMT = (unit(each.flatten(2).transpose(1, 2)) for each in (resized, teacher.detach()))
    student_BMM, teacher_BMM = (each @ each.transpose(1, 2) / temperature for each in (student_BMT, teacher_BMT))
    return _divergence(student_BMM.flatten(0, 1), teacher_BMM.flatten(0, 1))


def _divergence(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    student_NK, teacher_NK = student_NK.log_softmax(dim=1), teacher_NK.log_softmax(dim=1)
    return F.kl_div(student_NK, teacher_NK, reduction="batchmean", log_target=True)


def queue_with(queue_KT: Tensor, rows_NT: Tensor) -> Tensor:
    """A queue with rows put in front, in their order, as long as before: the oldest fall out."""
    return torch.cat([rows_NT, queue_KT])[: len(queue_KT)]


class Similarity(Term):
    """The term ``similarity``: an image is as like the images of a queue as it is to the teacher.

    The student's embedding goes through a linear layer to the teacher's width, trained with it and used for nothing
    else. The queue holds the teacher's embeddings of the latest images, the batch's among them; it begins as zeros.
    Each process has a queue of its own images, as in the original, or with ``gather`` all share one. The queues of all
    processes are part of the state, and equal on all ranks.
    """

    own_buffers = ("queue",)

    def __init__(self, temperature: float = 0.07, queue: int | None = None, gather: bool = False) -> None:
        super().__init__()
        self.temperature, self.rows, self.gather = temperature, queue, gather
        self.pending: list[tuple[Tensor, Tensor]] = []

    def setup(self, context: TermContext) -> None:
        """Make the linear layer and the queues, one for each process, or one."""
        self.collective = context.collective
        self.projector = projector(context.student_features, context.teacher_features)
        queues = 1 if self.gather else self.collective.size
        rows = self.rows or default_queue(len(context.labels))
        self.register_buffer("queue", torch.zeros(queues, rows, context.teacher_features))

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean; what was seen enters the queue at the step's end."""
        assert inputs.teacher is not None
        student_BS, teacher_BT = inputs.student.embedding_BD, inputs.teacher.embedding_BD
        assert student_BS is not None
        assert teacher_BT is not None
        queue = self.get_buffer("queue")
        own_BT = unit(teacher_BT.detach()).to(queue.dtype)
        rank = torch.full((len(own_BT),), self.collective.rank, device=own_BT.device)
        rows_NT, ranks_N = (self.collective.all_gather(each)[0] for each in (own_BT, rank))
        self.pending.append((rows_NT, ranks_N))
        seen_KT = queue_with(queue[0], rows_NT) if self.gather else queue_with(queue[self.collective.rank], own_BT)
        return similarity_loss(self.projector(student_BS), teacher_BT, seen_KT, self.temperature)

    @torch.no_grad()
    def end_step(self) -> None:
        """Put the step's rows in front of the queue, by micro-batch, rank and row, as one process would see them."""
        rows_NT, ranks_N = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        self.pending = []
        # What is not finite would make every later loss so.
        finite_N = rows_NT.isfinite().all(dim=1)
        for process, queue_KT in enumerate(self.get_buffer("queue")):
            chosen_N = finite_N if self.gather else finite_N & (ranks_N == process)
            queue_KT.copy_(queue_with(queue_KT, rows_NT[chosen_N]))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Take the queues of a run that goes on with another number of processes: theirs, in turn."""
        stored = state_dict.get(f"{prefix}queue")
        queue = self.get_buffer("queue")
        if stored is not None and stored.shape[1:] == queue.shape[1:]:
            state_dict[f"{prefix}queue"] = stored[torch.arange(len(queue)) % len(stored)]
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SimilarityLocal(Term):
    """The term ``similarity_local``: the pixels of the student's last map are as alike as the teacher's.

    The student's pixels go through a linear layer to the teacher's width, trained with it and used for nothing else.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def setup(self, context: TermContext) -> None:
        """Make the linear layer.

        Raises:
            UserError: no map of a network has more than one pixel, which is like nothing but itself.
        """
        student, teacher = (
            _compared(last, name)
            for last, name in ((context.student_last, "student"), (context.teacher_last, "teacher"))
        )
        self.projector = projector(student.channels, teacher.channels)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean over all pixels."""
        assert inputs.teacher is not None
        student, teacher = inputs.student.last, inputs.teacher.last
        assert student is not None
        assert teacher is not None
        projected = self.projector(student.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return similarity_local_loss(projected, teacher, self.temperature)


def _compared(last: OwnStage | None, name: str) -> OwnStage:
    assert last is not None
    if last.size == (1, 1):
        raise UserError(
            f"objective.similarity_local: no map of the {name} has more than one pixel, and others to be like; remove "
            "this term, or give larger images"
        )
    return last


def projector(student_channels: int, teacher_channels: int) -> nn.Linear:
    """A linear layer whose weight is drawn from a normal distribution of deviation 0.02, cut at 2 either side."""
    layer = nn.Linear(student_channels, teacher_channels)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    return layer
