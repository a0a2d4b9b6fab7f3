"""USKD: universal self-distillation, NKD's form without a teacher (Yang et al., ICCV 2023).

B batch, C classes, S student channels, H W pixels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.losses.logits import hard_labels, non_target_log_softmax
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext
from distillery.experiment.stages import chosen_stage

EPS = 1e-6
# How much of a weak logits' target is spread over all classes.
SMOOTHING = 0.1


@full_precision
def uskd_loss(
    logits: Tensor,
    weak_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 0.1,
    mu: float = 0.005,
    reference: bool = False,
) -> Tensor:
    """Three cross-entropies with targets that the network makes for itself, a scalar.

    With ``p = softmax(z)``, ``w`` that of the weak logits and ``q`` the softmax over the classes other than y,

        -alpha mean_B omega log p_y - beta mean_B sum_c zipf_c log q_c - mu mean_B sum_c u_c log w_c.

    ``u`` is the label smoothed by 0.1, and ``omega = p_y^2 + 1 - mean_B p_y^2``. ``zipf`` is 1 / rank, as shares of the
    classes other than y. All classes are ranked, by ``w / (1 - w_y + 1e-6) + p / (1 - p_y + 1e-6)``, the largest
    first. Neither has a gradient.

    Args:
        logits: (B, C).
        weak_logits: (B, C), of a feature in the middle of the network.
        labels: y, class indices (B,).
        alpha: weight of the label.
        beta: weight of the other classes.
        mu: weight of the weak logits.
        reference: rank by log p where p is meant, as the original does.
    """
    log_p_BC, log_w_BC = F.log_softmax(logits, dim=1), F.log_softmax(weak_logits, dim=1)
    log_p_B = log_p_BC.gather(1, labels[:, None])[:, 0]
    square_B = (2 * log_p_B.detach()).exp()
    target = -((square_B + 1 - square_B.mean()) * log_p_B).mean()

    strength_BC = log_p_BC.detach() if reference else log_p_BC.detach().exp()
    zipf_BC = _zipf(_relative(log_w_BC.detach().exp(), labels) + _relative(strength_BC, labels), labels)
    others = -(zipf_BC * non_target_log_softmax(logits, labels)).sum(dim=1).mean()

    weak = F.cross_entropy(weak_logits, labels, label_smoothing=SMOOTHING)
    return alpha * target + beta * others + mu * weak


def _relative(values_BC: Tensor, labels_B: Tensor) -> Tensor:
    return values_BC / (1 - values_BC.gather(1, labels_B[:, None]) + EPS)


def _zipf(scores_BC: Tensor, labels_B: Tensor) -> Tensor:
    """1 / rank of every class but the label's, as shares; 0 for the label."""
    ranks_BC = scores_BC.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
    zipf_BC = (1 / ranks_BC.to(scores_BC.dtype)).scatter(1, labels_B[:, None], 0.0)
    return zipf_BC / zipf_BC.sum(dim=1, keepdim=True)


class USKD(Term):
    """The term ``uskd``: the weak logits are a linear layer's, of a stage's mean; it is trained with the student.

    Of soft targets, the largest is the label; the mean in omega is over a process's own images, as in the original.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.1,
        mu: float = 0.005,
        stage: int | None = None,
        compat: str = "fixed",
    ) -> None:
        super().__init__()
        self.weights = alpha, beta, mu
        self.stage, self.reference = stage, compat == "reference"

    def setup(self, context: TermContext) -> None:
        """Make the linear layer."""
        stages = len(context.stages)
        if self.stage is None:
            self.stage = max(stages - 2, 0)
        chosen_stage(stages, self.stage, "uskd")
        self.weak = nn.Linear(context.stages[self.stage].student_channels, context.classes)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the weighted sum of the three."""
        assert self.stage is not None
        middle_BSHW = inputs.student.activations[self.stage]
        weak_BC = self.weak(middle_BSHW.mean(dim=(2, 3)))
        return uskd_loss(
            inputs.student.logits_BC, weak_BC, hard_labels(inputs.target), *self.weights, reference=self.reference
        )
