"""The two parties of a lesson: the learner, whose weights move, and the teacher, whose weights do not.

B batch, C classes.
"""

import torch
from torch import Tensor, nn

from distillery.objectives import Lesson, Outputs, WeightedTerms


class Learner(nn.Module):
    """The student, the normalisation of its input, and its objective: all that is optimised, in one module for DDP.

    Tensors come in and go out as plain arguments, because precision and DDP wrappers look inside those only.
    """

    def __init__(self, student: nn.Module, normalize: nn.Module, objective: WeightedTerms, channels_last: bool) -> None:
        super().__init__()
        self.student = student
        self.normalize = normalize
        self.objective = objective
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(
        self, images: Tensor, target: Tensor, teacher_logits_BC: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the objective's values (``loss`` is what to minimise) and the student's logits (B, C)."""
        logits_BC = self.student(self.normalize(images).contiguous(memory_format=self.memory_format))
        teacher = None if teacher_logits_BC is None else Outputs(teacher_logits_BC)
        return self.objective(Lesson(student=Outputs(logits_BC), target=target, teacher=teacher)), logits_BC


class Teacher:
    """A frozen network that only answers.

    It is no submodule of anything: DDP never wraps it, the optimizer never sees it, no checkpoint holds it. It stays in
    evaluation mode whatever the learner does, and normalises its input by its own statistics.
    """

    def __init__(self, network: nn.Module, normalize: nn.Module, channels_last: bool) -> None:
        self.network = network.eval().requires_grad_(False)
        self.normalize = normalize
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) for uint8 images (B, 3, H, W), without gradient."""
        logits_BC: Tensor = self.network(self.normalize(images).contiguous(memory_format=self.memory_format))
        return logits_BC
