"""The weights that a run imports or starts from, where its line names some."""

from dataclasses import dataclass

from distillery.config.schema.recipe import Preprocess
from distillery.evaluation.restore import finished_record
from distillery.layout import run_folder
from distillery.training.job import Job


@dataclass(frozen=True)
class InitialWeights:
    """Where weights come from: a file, ``torchvision:TAG`` or ``timm:TAG``; and how images were prepared, if known."""

    file: str
    preprocess: Preprocess | None = None


def initial_weights(job: Job) -> InitialWeights | None:
    """Find what ``weights`` names; another run gives those of its first seed.

    Raises:
        UserError: the other run was not made yet, or was made from another configuration.
    """
    origin = job.page.origin(job.run)
    if origin is None:
        return None if job.spec.weights is None else InitialWeights(job.spec.weights)
    page, run = origin
    seed = page.seeds(run)[0]
    record = finished_record(page, run, seed, job.results)
    weights = run_folder(job.results, page.name, run, seed) / "weights.safetensors"
    return InitialWeights(str(weights), Preprocess.model_validate(record["preprocess"]))
