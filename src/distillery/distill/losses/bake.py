"""BAKE: a batch of images as its own ensemble of teachers (Ge et al. 2021).

B batch (N over all processes), D features, C classes.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distillery.distill.collective import Collective
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext


@torch.no_grad()
@full_precision
def knowledge(features: Tensor, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """What one process knows of its images: unit features (B, D) and softened probabilities (B, C), without gradient.

    Processes gather these from each other when the ensemble spans them all.
    """
    return F.normalize(features, dim=1, eps=1e-12), F.softmax(logits / temperature, dim=1)


@torch.no_grad()
@full_precision
def propagate(unit_features: Tensor, probabilities: Tensor, omega: float) -> Tensor:
    """Propagate probabilities over the graph of similar images until they settle (eq. 7 of the paper).

    With ``W_ij`` the softmax over ``j != i`` of the cosines of images i and j,

        Q = (1 - omega) (I - omega W)^-1 P.

    Rows of Q are distributions; omega = 0 gives P, and a batch of one image keeps its own.

    ``W`` is ``D^-1 K`` with ``K_ij = exp(cosine)`` and ``D`` its row sums, so the system is the symmetric positive
    definite ``(D - omega K) Q = (1 - omega) D P``: one Cholesky factor, no inverse. Its off-diagonal entries are
    negative, hence no step of the elimination cancels and no entry of Q can come out negative.

    Args:
        unit_features: rows of length 1, (N, D).
        probabilities: rows of sum 1, (N, C).
        omega: the neighbours' share, in [0, 1).

    Returns:
        Q, (N, C).
    """
    assert 0 <= omega < 1, f"omega is {omega}; a share in [0, 1) is needed for the propagation to settle"
    if len(unit_features) == 1:
        return probabilities
    affinity = torch.exp(unit_features @ unit_features.T).fill_diagonal_(0)
    degree = affinity.sum(dim=1)
    # cholesky_ex does not wait for the device to report; features that are not finite show in the loss.
    factor, _ = torch.linalg.cholesky_ex(torch.diag(degree) - omega * affinity)
    # Transposed, the right-hand side lies in memory as the solver wants it, which is twice as fast as from the left.
    right_CN = (1 - omega) * degree * probabilities.T
    halfway_CN = torch.linalg.solve_triangular(factor.T, right_CN, upper=True, left=False)
    targets_CN: Tensor = torch.linalg.solve_triangular(factor, halfway_CN, upper=False, left=False)
    return targets_CN.T


def ensemble_targets(features: Tensor, logits: Tensor, omega: float, temperature: float) -> Tensor:
    """The soft targets of a batch, from the batch itself: (B, C), rows of sum 1, without gradient.

    Args:
        features: the input of the network's last linear layer, (B, D).
        logits: (B, C).
        omega: the neighbours' share, in [0, 1).
        temperature: T > 0.
    """
    return propagate(*knowledge(features, logits, temperature), omega)


def global_ensemble_targets(unit_features: Tensor, probabilities: Tensor, omega: float, own: slice) -> Tensor:
    """The soft targets of one process's images, from the images of all: (B, C), rows of sum 1, without gradient.

    Args:
        unit_features: every process's, gathered in one order, (N, D).
        probabilities: likewise, (N, C).
        omega: the neighbours' share, in [0, 1).
        own: this process's rows.
    """
    return propagate(unit_features, probabilities, omega)[own]


@full_precision
def ensembling_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """``T^2 / B`` times the sum of ``KL(Q || softmax(z / T))``, a scalar.

    Its gradient with respect to the logits is ``T (softmax(z / T) - Q) / B``.

    Args:
        logits: (B, C).
        targets: Q, (B, C), rows of sum 1; detached.
        temperature: T > 0, the one that made the targets.
    """
    log_BC = F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_BC, targets.detach(), reduction="batchmean")


def bake_loss(features: Tensor, logits: Tensor, omega: float, temperature: float) -> Tensor:
    """BAKE's loss of a batch on one process, a scalar; the arguments of ``ensemble_targets``.

    Only the logits get a gradient: features and targets are taken as given.
    """
    return ensembling_loss(logits, ensemble_targets(features, logits, omega, temperature), temperature)


class BAKE(Term):
    """The term ``bake``: the images of a batch ensemble their knowledge into each other's targets."""

    def __init__(
        self,
        omega: float = 0.5,
        temperature: float = 4.0,
        partners: int = 1,
        ensemble: Literal["global", "local"] = "global",
    ) -> None:
        super().__init__()
        self.omega, self.temperature, self.partners, self.ensemble = omega, temperature, partners, ensemble

    def setup(self, context: TermContext) -> None:
        """Remember how to reach the other processes."""
        self.collective = context.collective if self.ensemble == "global" else Collective()

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean of this process's images, whose targets all images made."""
        embedding_BD, logits_BC = inputs.student.embedding_BD, inputs.student.logits_BC
        assert embedding_BD is not None
        unit_BD, probabilities_BC = knowledge(embedding_BD, logits_BC, self.temperature)
        unit_ND, own = self.collective.all_gather(unit_BD)
        probabilities_NC, _ = self.collective.all_gather(probabilities_BC)
        targets_BC = global_ensemble_targets(unit_ND, probabilities_NC, self.omega, own)
        return ensembling_loss(logits_BC, targets_BC, self.temperature)
