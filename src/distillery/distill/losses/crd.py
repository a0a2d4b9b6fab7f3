"""CRD: contrastive representation distillation (Tian et al., ICLR 2020).

B batch (N over all processes), M training images, D features, E numbers of an embedded image, K negatives.
"""

import numpy as np
import torch
from torch import Tensor, nn

from distillery.accelerator import wide
from distillery.distill.collective import last_rows
from distillery.distill.draws import hashed_bits, image_keys
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext
from distillery.errors import UserError

EPS = 1e-7

# Scores of one piece of a batch that may be held at once: of its images with all training images.
PIECE = 2**27

# Rounds of the permutation that draws negatives.
ROUNDS = 6


@full_precision
def crd_scores(embedded_BE: Tensor, memory_ME: Tensor, samples: Tensor, temperature: float) -> Tensor:
    """``exp(<memory of a sample, embedded image> / temperature)``, (B, 1 + K).

    Args:
        embedded_BE: one network's embedded images, of length 1.
        memory_ME: what the other network's images were embedded to when they were last seen.
        samples: positions in the memory, (B, 1 + K).
        temperature: above 0.
    """
    rows = max(PIECE // len(memory_ME), 1)
    pieces = zip(torch.split(embedded_BE, rows), torch.split(samples, rows), strict=True)
    # One product with the whole memory holds less than copies of K rows for every image would.
    return torch.cat([torch.exp((piece @ memory_ME.T).gather(1, chosen) / temperature) for piece, chosen in pieces])


@full_precision
def crd_loss(scores: Tensor, normalizer: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation of which sample is the image itself, a scalar: the mean over the batch.

    With ``x = scores / normalizer`` and ``c = K / images``,

        -log(x_0 / (x_0 + c + eps)) - sum_k log(c / (x_k + c + eps)).

    Args:
        scores: (B, 1 + K), the image itself first.
        normalizer: a scalar, ``images`` x the mean score of the first batch.
        images: in the memory.
    """
    x = scores / normalizer
    noise = (scores.shape[1] - 1) / images
    positive_B = torch.log(x[:, 0] / (x[:, 0] + noise + EPS))
    negative_B = torch.log(noise / (x[:, 1:] + noise + EPS)).sum(dim=1)
    return -(positive_B + negative_B).mean()


def crd_updated(memory_NE: Tensor, embedded_NE: Tensor, momentum: float) -> Tensor:
    """Rows of a memory after their images were seen: ``momentum`` of the old, the rest of the new, at length 1."""
    mixed_NE = momentum * memory_NE + (1 - momentum) * embedded_NE
    return _unit(mixed_NE)


def draw_distinct(keys_B: Tensor, below_B: Tensor, count: int) -> Tensor:
    """For every key, ``count`` numbers below a limit, all distinct where there are enough; a function of the key alone.

    Numbers 0, 1, 2, ... go through a keyed permutation of the grid of a x b >= limit places (a Feistel network), and
    what falls beyond the limit goes through again until it does not. Where there are not enough, numbers are hashed.

    Args:
        keys_B: int64 (B,), from 0.
        below_B: limits, int64 (B,), at least 1.
        count: K.

    Returns:
        int64 (B, K).
    """
    limit = below_B[:, None]
    side = wide(limit).sqrt().ceil().long().to(limit.device)
    other = (limit + side - 1) // side
    counter = torch.arange(count, device=keys_B.device).expand(len(keys_B), count)
    enough = limit >= count

    def permuted(place: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        keys, a, b = keys_B[rows], side[rows], other[rows]
        left, right = place // b, place % b
        for turn in range(0, ROUNDS, 2):
            left = (left + hashed_bits(keys, right, turn)) % a
            right = (right + hashed_bits(keys, left, turn + 1)) % b
        return left * b + right

    drawn = permuted(torch.where(enough, counter, 0))
    rows, columns = (drawn >= limit).nonzero(as_tuple=True)
    while len(rows):  # few: the grid has hardly more places than there are numbers
        again = permuted(drawn[rows, columns][:, None], rows)
        drawn[rows, columns] = again[:, 0]
        outside = (again >= limit[rows])[:, 0]
        rows, columns = rows[outside], columns[outside]
    return torch.where(enough, drawn, hashed_bits(keys_B, counter, ROUNDS) % limit)


class CRD(Term):
    """The term ``crd``: each network's embedding of an image is told apart from the other network's of other images.

    Both networks' embeddings go through a linear layer each, trained with the student, and are compared with what the
    other network's were when their images were last seen. The memories and normalizers are part of the state and equal
    on all ranks; the negatives of an image are a function of (seed, epoch, image).
    """

    own_buffers = ("memory_s", "memory_t", "Z_s", "Z_t", "by_class", "starts", "sizes", "class_of")

    def __init__(
        self, negatives: int = 16_384, temperature: float = 0.07, features: int = 128, momentum: float = 0.5
    ) -> None:
        super().__init__()
        self.negatives, self.temperature, self.features, self.momentum = negatives, temperature, features, momentum
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.normalized = False

    def setup(self, context: TermContext) -> None:
        """Make the linear layers, the memories (rows uniform in +-1 / sqrt(E / 3)) and the list of images by class.

        An image whose label is not known (below 0) is of a class of its own: only itself is surely of that class.
        """
        labels, unknown = context.labels.copy(), context.labels < 0
        labels[unknown] = context.classes + np.arange(unknown.sum())
        sizes = np.bincount(labels, minlength=context.classes)
        if (sizes == len(labels)).any():
            raise UserError("objective.crd: all training images are of one class, none can be a negative")
        self.collective, self.seed, self.images = context.collective, context.seed, len(context.labels)
        self.embed_s = nn.Linear(context.student_features, self.features)
        self.embed_t = nn.Linear(context.teacher_features, self.features)
        bound = (self.features / 3) ** -0.5
        for side in "st":
            rows = torch.rand(self.images, self.features) * 2 * bound - bound
            self.register_buffer(f"memory_{side}", rows)
            self.register_buffer(f"Z_{side}", torch.zeros(()))
        # Positions of the classes in the list of images sorted by class.
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        lists = {"by_class": np.argsort(labels, kind="stable"), "starts": starts, "sizes": sizes}
        for name, values in (lists | {"class_of": labels}).items():
            self.register_buffer(name, torch.from_numpy(np.array(values, dtype=np.int64)), persistent=False)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the sum of both networks' losses; what was seen enters the memories at the step's end."""
        indices_B = inputs.indices_B
        assert indices_B is not None
        embeds = zip((self.embed_s, self.embed_t), inputs.embeddings(), strict=True)
        embedded = [_unit(embed(embedding_BD)) for embed, embedding_BD in embeds]
        samples = torch.cat([indices_B[:, None], self.draw_negatives(int(inputs.epoch), indices_B)], dim=1)
        gathered = [self.collective.all_gather(rows.detach())[0] for rows in (indices_B, *embedded)]
        self.pending.append((gathered[0], gathered[1], gathered[2]))
        return self.contrast(embedded[0], embedded[1], samples)

    def contrast(self, student_BE: Tensor, teacher_BE: Tensor, samples: Tensor) -> Tensor:
        """The sum of both losses of embedded images, given each one's samples (B, 1 + K), itself first."""
        scores = {
            "s": crd_scores(student_BE, self.get_buffer("memory_t"), samples, self.temperature),
            "t": crd_scores(teacher_BE, self.get_buffer("memory_s"), samples, self.temperature),
        }
        self._normalize(scores)
        losses = [crd_loss(scores[side], self.get_buffer(f"Z_{side}"), self.images) for side in "st"]
        return losses[0] + losses[1]

    def _normalize(self, scores: dict[str, Tensor]) -> None:
        """Set the normalizers, images x mean score, by the run's first batch; they stay as they are ever after."""
        self.normalized = self.normalized or bool(self.get_buffer("Z_s") > 0)
        if self.normalized:
            return
        for side, values in scores.items():
            total = self.collective.all_reduce(torch.stack([values.detach().sum(), values.new_tensor(values.numel())]))
            self.get_buffer(f"Z_{side}").copy_(self.images * total[0] / total[1])

    def draw_negatives(self, epoch: int, indices_B: Tensor) -> Tensor:
        """Images that are not known to be of the same class, (B, K), all distinct where there are enough."""
        keys_B = image_keys(self.seed, "negatives", epoch, indices_B)
        class_B = self.get_buffer("class_of")[indices_B]
        start, size = self.get_buffer("starts")[class_B][:, None], self.get_buffer("sizes")[class_B][:, None]
        drawn = draw_distinct(keys_B, self.images - size[:, 0], self.negatives)
        # The class's own images stand together in the list: step over them.
        return self.get_buffer("by_class")[drawn + (drawn >= start) * size]

    @torch.no_grad()
    def end_step(self) -> None:
        """Bring the step's images, of all ranks and micro-batches, into the memories; seen twice, the last counts."""
        indices_N, *embedded = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        self.pending = []
        rows = last_rows(indices_N)
        # A step that mixed precision skips must not stay in the memories, for these would never be finite again.
        rows = rows[torch.isfinite(embedded[0][rows]).all(dim=1) & torch.isfinite(embedded[1][rows]).all(dim=1)]
        images = indices_N[rows]
        for side, embedded_NE in zip("st", embedded, strict=True):
            memory = self.get_buffer(f"memory_{side}")
            memory[images] = crd_updated(memory[images], embedded_NE[rows].to(memory.dtype), self.momentum)


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return unit
