"""How a network begins: with weights drawn at random, or with those that its run's line names."""

from dataclasses import dataclass

from torch import nn

from distillery.errors import located
from distillery.evaluation.restore import finished_record
from distillery.experiment.schema.recipe import Preprocess
from distillery.models import create_model
from distillery.models.initialisation import draw_classifier
from distillery.models.pretrained.load import import_weights
from distillery.paths import run_folder
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
    origin = job.experiment.origin(job.run)
    if origin is None:
        return None if job.spec.weights is None else InitialWeights(job.spec.weights)
    experiment, run = origin
    seed = experiment.seeds(run)[0]
    record = finished_record(experiment, run, seed, job.results)
    weights = run_folder(job.results, experiment.name, run, seed) / "weights.safetensors"
    return InitialWeights(str(weights), Preprocess.model_validate(record["preprocess"]))


def begin_network(job: Job) -> nn.Module:
    """Build a run's network as it is before the first step; random weights come from torch's global generator.

    Raises:
        UserError: the model or the weights that the run names cannot be had, or do not fit each other.
    """
    network = create_model(job.spec.model, len(job.manifest.classes), **job.spec.model_args)
    source = initial_weights(job)
    if source is not None:
        import_weights(network, source.file, job.spec.model, job.spec.model_args, job.spec.new_classifier)
    recipe, drawn = job.spec.recipe, source is None or job.spec.new_classifier
    if recipe is not None and recipe.classifier_std is not None and drawn:
        with located(job.where):
            draw_classifier(network, recipe.classifier_std)
    return network
