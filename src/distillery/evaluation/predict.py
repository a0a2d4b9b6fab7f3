"""What finished runs say of each validation image.

N images.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from distillery.data.arrow import ArrowImages
from distillery.data.manifest import Manifest
from distillery.evaluation.evaluate import SPLIT, loader_of
from distillery.evaluation.restore import default_device, restore_run
from distillery.experiment import Experiment
from distillery.paths import dataset_folder


@torch.no_grad()
def predict_run(
    experiment: Experiment, run: str, seed: int, results: Path, manifest: Manifest, workers: int = 0
) -> NDArray[np.int64]:
    """The most probable class of each validation image (N,), in the order of the split.

    Raises:
        UserError: the run is missing, damaged or stale.
    """
    device = default_device()
    finished = restore_run(experiment, run, seed, results, device, manifest)
    images = ArrowImages(dataset_folder(results, experiment.config.dataset), manifest, SPLIT)
    predicted_N = np.zeros(len(images), dtype=np.int64)
    loader = loader_of(images, finished.preprocess, workers, device)
    for batch in tqdm(loader, desc=f"{run}/seed{seed}", unit="batch", disable=None, leave=False):
        scores_BC = finished.predict(batch.images.to(device, non_blocking=True))
        # As top-1 is counted, which matters for networks that give two classes the same score.
        predicted_N[batch.indices.numpy()] = scores_BC.float().topk(1, dim=1).indices[:, 0].cpu().numpy()
    return predicted_N


def validation_labels(experiment: Experiment, results: Path, manifest: Manifest) -> NDArray[np.int64]:
    """The class of each validation image (N,)."""
    images = ArrowImages(dataset_folder(results, experiment.config.dataset), manifest, SPLIT)
    return np.asarray(images.labels, dtype=np.int64)
