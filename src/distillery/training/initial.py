"""How networks begin: with weights drawn at random, or those that a run's line names, or as a finished teacher."""

from dataclasses import dataclass

from lightning_fabric import Fabric
from torch import nn

from distillery.errors import UserError, located
from distillery.evaluation.restore import FinishedRun, finished_record, restore_run
from distillery.experiment.schema.recipe import Preprocess
from distillery.models import create_model
from distillery.models.initialisation import draw_classifier
from distillery.models.pretrained.load import import_weights
from distillery.paths import run_folder
from distillery.results import command, read_json
from distillery.training.inputs import Validate
from distillery.training.job import Job

# A teacher that scores this many points less than when it was evaluated was not loaded as it was trained.
TEACHER_TOLERANCE = 0.5


@dataclass(frozen=True)
class InitialWeights:
    """Where weights come from: a file, ``torchvision:TAG`` or ``timm:TAG``; and how images were prepared, if known."""

    file: str
    preprocess: Preprocess | None = None


def initial_weights(job: Job) -> InitialWeights | None:
    """Find what ``weights`` names; another run gives those of its first seed.

    Raises:
        UserError: the other run was not made yet, was made from another configuration, or is deployed with a head.
    """
    origin = job.experiment.origin(job.run)
    if origin is None:
        return None if job.spec.weights is None else InitialWeights(job.spec.weights)
    experiment, run = origin
    seed = experiment.seeds(run)[0]
    record = finished_record(experiment, run, seed, job.results)
    if "head" in record:
        raise UserError(
            f"{job.where}.weights: {run!r} was trained by {record['head']['term']!r}, whose head replaced the last "
            "layer, so its weights do not fit the plain network; name a run whose objective has no such term"
        )
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


def finished_teacher(job: Job, fabric: Fabric, validate: Validate) -> FinishedRun | None:
    """Load the teacher and measure it before the student learns from it.

    Raises:
        UserError: it was not made yet, its metrics are damaged, or it scores less than when it was evaluated.
    """
    name = job.experiment.teacher(job.run)
    if name is None:
        return None
    finished = restore_run(
        job.experiment, name, job.experiment.seeds(name)[0], job.results, fabric.device, job.manifest
    )
    measured = validate(finished.predict, finished.preprocess)["top1"]
    fabric.print(f"{job.name}: teacher {name} scores {measured:.2f} % top-1 on the validation images")
    metrics = finished.weights.with_name("metrics.json")
    if metrics.exists():
        made_by = command("evaluate", job.experiment.path, name, job.experiment.seeds(name)[0], job.results)
        recorded = read_json(metrics, made_by, needed=("top1", "weights_sha256"))
        expected = recorded["top1"]
        # Metrics of weights that were replaced since say nothing about these.
        if recorded["weights_sha256"] == finished.weights_sha256 and measured < expected - TEACHER_TOLERANCE:
            raise UserError(
                f"{finished.weights}: this teacher scores {measured:.2f} % top-1 on the validation images, but "
                f"{expected:.2f} % stands in {metrics}; train or import it again"
            )
    return finished
