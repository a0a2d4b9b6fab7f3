"""Terms that are not computed as their authors do it, beside that way: time, and what is held for the backward pass.

    python benchmarks/originals.py [--rounds 5]

NST's kernel sums, RKD's angles and CRD's scores, forward and backward, on one thread; the gradients are compared before
times are. Ways take turns; the median of the rounds' ratios of the processor's time counts.

B batch, S/T student/teacher channels, P pixels, D features, E numbers of an embedded image, K negatives, M images.
"""

from collections.abc import Callable, Iterator
from functools import partial

import rows
import torch
from rows import Row, beside, in_turns
from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.crd import crd_scores
from distillery.distill.losses.nst import nst_loss
from distillery.distill.losses.rkd import rkd_angle_loss

Loss = Callable[[Tensor], Tensor]


def nst_of_all_products(teacher: Tensor, student: Tensor) -> Tensor:
    """Every product of every pixel of every pair of channels at once, (B, S, T, P)."""
    s_BSP, t_BTP = (F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] * b[:, :, None]).sum(dim=-1).square().mean()

    return kernel(t_BTP, t_BTP) + kernel(s_BSP, s_BSP) - 2 * kernel(s_BSP, t_BTP)


def rkd_of_all_angles(teacher: Tensor, student: Tensor) -> Tensor:
    """The directions between all images, (B, B, D), and all their products."""
    found = []
    for embedding_BD in (student, teacher):
        direction_BBD = F.normalize(embedding_BD[None] - embedding_BD[:, None], dim=2)
        found.append(torch.bmm(direction_BBD, direction_BBD.mT).flatten())
    return F.smooth_l1_loss(*found)


def crd_of_copied_rows(memory_ME: Tensor, samples: Tensor, student: Tensor) -> Tensor:
    """A copy of each image's rows of the memory, (B, 1 + K, E)."""
    rows_BKE = memory_ME.index_select(0, samples.flatten()).view(*samples.shape, -1)
    return torch.exp(torch.bmm(rows_BKE, student[:, :, None])[..., 0] / 0.07).mean()


def crd_of_one_product(memory_ME: Tensor, samples: Tensor, student: Tensor) -> Tensor:
    """The term's own."""
    return crd_scores(student, memory_ME, samples, 0.07).mean()


def cases() -> Iterator[tuple[str, Tensor, Loss, Loss]]:
    """What is computed, the student's part, and both ways: the original's, then ours."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    for batch, s, t, side in ((32, 64, 64, 8), (2, 256, 512, 14)):
        teacher = draw(batch, t, side, side)
        student = draw(batch, s, side, side)
        ours = partial(lambda t_maps, s_maps: nst_loss(s_maps, t_maps), teacher)
        yield f"nst, {batch} maps of {side} x {side} ({s}, {t})", student, partial(nst_of_all_products, teacher), ours
    for batch in (64, 160):  # the larger one in pieces, which are computed again for the backward pass
        teacher, student = draw(batch, 2048), draw(batch, 512)
        angles = partial(lambda t_rows, s_rows: rkd_angle_loss(s_rows, t_rows), teacher)
        yield f"rkd's angles, {batch} images (512, 2048)", student, partial(rkd_of_all_angles, teacher), angles
    memory, student = F.normalize(draw(50_000, 128), dim=1), F.normalize(draw(32, 128), dim=1)
    samples = torch.randint(0, 50_000, (32, 16_385), generator=generator)
    product = partial(crd_of_one_product, memory, samples)
    yield "crd's scores, 32 images, 16,384 of 50,000", student, partial(crd_of_copied_rows, memory, samples), product


def gradient(loss: Loss, student: Tensor) -> Tensor:
    """Of the student's part."""
    student = student.clone().requires_grad_()
    loss(student).backward()
    assert student.grad is not None
    return student.grad


def held(loss: Loss, student: Tensor) -> float:
    """MiB that autograd keeps between the passes."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss(student.clone().requires_grad_())
    assert value.ndim == 0
    return sum(kept.values()) / 2**20


def measured(rounds: int) -> Iterator[Row]:
    """Two rows of each: time, and what is held."""
    for what, student, original, ours in cases():
        ways = {"ours": partial(gradient, ours, student), "the original's way": partial(gradient, original, student)}
        ours_found, theirs_found = (way() for way in ways.values())
        assert torch.allclose(ours_found, theirs_found, rtol=1e-3, atol=1e-3 * theirs_found.abs().max().item()), what
        yield beside("terms", what, in_turns(ways, rounds), "ours", "the original's way", 1.0)
        own, theirs = held(ours, student), held(original, student)
        yield Row("terms", f"{what}: held", own, "the original's way", theirs, "MiB", theirs / own, 0.95)


def main() -> None:
    """Print the table."""
    given = rows.parser(__doc__, rounds=5).parse_args()
    torch.set_num_threads(1)
    rows.write(measured(given.rounds), given.rows)


if __name__ == "__main__":
    main()
