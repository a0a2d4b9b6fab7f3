"""What a network's embedding is worth by itself: nearest neighbours, and a linear classifier on the frozen network.

Both see the training images without augmentation, prepared as validation images are, with all labels that the data set
has, whatever labels the run was trained with.

N training images, M validation images, D features, C classes, K neighbours, B rows at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.accelerator import default_device, float64_device
from distillery.data.arrow import ArrowImages
from distillery.data.manifest import load_manifest
from distillery.errors import UserError
from distillery.evaluation.metrics import on
from distillery.evaluation.predict import SPLIT, batches
from distillery.evaluation.restore import FinishedRun, restore_run
from distillery.experiment import Experiment
from distillery.experiment.ledger import PROBING
from distillery.experiment.schema.columns import PROBES
from distillery.models.taps import TapError, Taps, plan_taps
from distillery.paths import dataset_folder, run_folder
from distillery.results import record_sha256, write_sealed

TRAINING: Final = "train"
NEIGHBOURS = 20
TEMPERATURE = 0.07
# As scikit-learn's C: half the squared weights are added to C times the sum of losses.
REGULARISATION = 1.0
MOST_ITERATIONS = 1000
LARGEST_GRADIENT = 1e-6
QUERIES_AT_ONCE = 256
ROWS_AT_ONCE = 65536


def probe_run(
    experiment: Experiment, run: str, seed: int, results: Path, workers: int = 0, device: torch.device | None = None
) -> dict[str, Any]:
    """Measure a trained or imported run's embedding, and write probes.json beside its metrics.json.

    Where tables show one of the two of the run, the other is left out: a linear probe of many images is dear.

    Raises:
        UserError: the run or the data set is missing, damaged or stale; the data set has no training images, or one
            class only; the network has no embedding, or one that is not finite.
    """
    probes = measure_probes(experiment, run, seed, results, workers, device)
    write_sealed(run_folder(results, experiment.name, run, seed) / PROBES, probes)
    return probes


def measure_probes(
    experiment: Experiment, run: str, seed: int, results: Path, workers: int = 0, device: torch.device | None = None
) -> dict[str, Any]:
    """What `probe_run` writes into probes.json.

    Raises:
        UserError: as there.
    """
    device = device or default_device()
    folder = dataset_folder(results, experiment.config.dataset)
    manifest = load_manifest(folder)
    if len(manifest.classes) < 2:
        raise UserError(
            f"{folder}: {manifest.name} has one class only, so that any embedding is right; nothing to probe"
        )
    finished = restore_run(experiment, run, seed, results, device, manifest)
    training, validation = ArrowImages(folder, manifest, TRAINING), ArrowImages(folder, manifest, SPLIT)
    label = f"{run}/seed{seed}"
    bank_ND, queries_MD = (_embeddings(finished, images, workers, device, label) for images in (training, validation))
    labels_N, truth_M = (torch.from_numpy(images.labels).to(bank_ND.device) for images in (training, validation))
    classes = len(manifest.classes)
    probes: dict[str, Callable[..., Tensor]] = {"knn": nearest_neighbours, "linear_probe": linear_probe}
    predicted = {name: probes[name](bank_ND, labels_N, queries_MD, classes) for name in experiment.probes(run)}
    return {
        "run": run,
        "seed": seed,
        "split": SPLIT,
        "images": len(validation),
        "training_images": len(training),
        "features": bank_ND.shape[1],
        "selection": finished.record["selection"],
        "selection_split": finished.record.get("selection_split"),
        **{name: 100 * (best_M == truth_M).double().mean().item() for name, best_M in predicted.items()},
        "digest": finished.record["digest"],
        "probing": PROBING,
        "weights_sha256": finished.weights_sha256,
        "record_sha256": record_sha256(finished.record),
    }


@torch.no_grad()
def _embeddings(finished: FinishedRun, images: ArrowImages, workers: int, device: torch.device, label: str) -> Tensor:
    """The embedding of each image (N, D) in float32, in the order of the split."""
    model = finished.record["spec"]["model"]
    try:
        plan = plan_taps(finished.network, finished.preprocess.size, model)
        taps = Taps(finished.network, plan, frozenset({"embedding"}))
    except TapError as error:
        raise UserError(f"{label}: cannot be probed: {error}") from None
    embedding_ND = torch.empty(len(images), plan.features, device=device)
    try:
        for batch in batches(images, finished.preprocess, workers, device, label):
            with taps.record() as features:
                finished.predict(on(batch.images, device))
            assert features.embedding is not None
            embedding_ND[on(batch.indices, device)] = features.embedding.float()
    finally:
        taps.remove()
    embedding_ND = embedding_ND.to(float64_device(device))
    if not embedding_ND.isfinite().all():
        raise UserError(f"{finished.weights}: the network's embeddings are NaN or infinite; train it again")
    return embedding_ND


@torch.no_grad()
def nearest_neighbours(
    bank_ND: Tensor, labels_N: Tensor, queries_MD: Tensor, classes: int, own_M: Tensor | None = None
) -> Tensor:
    """The class of each query (M,) that its K most similar images of the bank vote for.

    A vote weighs exp(cosine / 0.07), as DINO has it (Caron et al. 2021); K is 20, or all where the bank is smaller.
    ``own_M`` says which image of the bank each query is itself: it has no vote.
    """
    bank_ND = F.normalize(bank_ND, dim=1)
    best = []
    for first, queries_BD in enumerate(torch.split(F.normalize(queries_MD, dim=1), QUERIES_AT_ONCE)):
        similar_BN = queries_BD @ bank_ND.T
        if own_M is not None:
            own_B = own_M[first * QUERIES_AT_ONCE :][: len(queries_BD)]
            similar_BN.scatter_(1, own_B[:, None], -torch.inf)
        similar_BK, nearest_BK = similar_BN.topk(min(NEIGHBOURS, len(bank_ND)), dim=1)
        votes_BC = torch.zeros(len(queries_BD), classes, dtype=torch.float64, device=bank_ND.device)
        # One neighbour after the other: sums in any order would differ from time to time on a GPU.
        for weight_B, label_B in zip((similar_BK.double() / TEMPERATURE).exp().T, labels_N[nearest_BK].T, strict=True):
            votes_BC.scatter_(1, label_B[:, None], votes_BC.gather(1, label_B[:, None]) + weight_B[:, None])
        best.append(votes_BC.argmax(dim=1))
    return torch.cat(best)


@torch.no_grad()
def linear_probe(train_ND: Tensor, labels_N: Tensor, queries_MD: Tensor, classes: int) -> Tensor:
    """The class of each query (M,) by a linear classifier on the training images' embeddings.

    Softmax regression with a bias, in float64 on embeddings that are standardised by the training images', minimises
    the sum of cross-entropies and half the squared weights by L-BFGS on all images at once, from zeros: no schedule and
    no random number.
    """
    from scipy.optimize import minimize

    mean_D, std_D = train_ND.double().mean(dim=0), train_ND.double().std(dim=0, correction=0)
    # A feature that never changes tells nothing.
    scale_D = torch.where(std_D > 1e-6 * (1 + mean_D.abs()), 1 / std_D, 0.0)

    def standardised(rows_BD: Tensor) -> Tensor:
        return (rows_BD.double() - mean_D) * scale_D

    images, features = train_ND.shape
    penalty = 1 / (REGULARISATION * images)

    def split(numbers: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        both = torch.from_numpy(np.asarray(numbers)).to(train_ND.device).view(features + 1, classes)
        return both[:-1], both[-1]

    def mean_loss(numbers: Any) -> tuple[float, Any]:  # noqa: ANN401
        weight_DC, bias_C = split(numbers)
        loss, grad = (
            penalty * weight_DC.square().sum() / 2,
            torch.cat([penalty * weight_DC, torch.zeros_like(bias_C)[None]]),
        )
        for rows_BD, label_B in zip(
            torch.split(train_ND, ROWS_AT_ONCE), torch.split(labels_N, ROWS_AT_ONCE), strict=True
        ):
            inputs_BD = standardised(rows_BD)
            log_BC = (inputs_BD @ weight_DC + bias_C).log_softmax(dim=1)
            loss = loss - log_BC.gather(1, label_B[:, None]).sum() / images
            error_BC = (log_BC.exp() - F.one_hot(label_B, classes)) / images
            grad[:-1] += inputs_BD.T @ error_BC
            grad[-1] += error_BC.sum(dim=0)
        return loss.item(), grad.flatten().cpu().numpy()

    options = {"maxiter": MOST_ITERATIONS, "gtol": LARGEST_GRADIENT, "ftol": 64 * np.finfo(np.float64).eps}
    found = minimize(mean_loss, np.zeros((features + 1) * classes), jac=True, method="L-BFGS-B", options=options)
    weight_DC, bias_C = split(found.x)
    rows = [standardised(rows_BD) @ weight_DC + bias_C for rows_BD in torch.split(queries_MD, ROWS_AT_ONCE)]
    return torch.cat(rows).argmax(dim=1)
