"""How networks begin: with weights drawn at random, or those that a run's line names, or as a finished teacher."""

import math
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from distillery.data.arrow import ArrowImages
from distillery.data.weights import fetched
from distillery.errors import UserError, located, printable
from distillery.evaluation.record import checked_record
from distillery.evaluation.restore import FinishedRun, check_classes, record_beside, restore_run
from distillery.experiment.schema.block import Statistics
from distillery.experiment.schema.experiment import OWN_CLASSES
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.models import create_model, has_classifier
from distillery.models.initialisation import draw_classifier
from distillery.models.pretrained.classes import ClassMap, keep_classes, match_classes, weights_classes
from distillery.models.pretrained.load import Taken, take_weights
from distillery.paths import run_folder
from distillery.reporting.verdict import missed_top1
from distillery.results import command, read_json
from distillery.training.devices import collective_of
from distillery.training.inputs import Validate, plain_loader
from distillery.training.job import Job
from distillery.training.neighbours import ask_neighbours

# A teacher that scores this many points less than when it was evaluated was not loaded as it was trained.
TEACHER_TOLERANCE = 0.5
# A teacher that guesses passes for one that knows something so often.
CHANCE = 0.05
# Of fewer validation images a good teacher, too, may miss many: too few to refuse one.
FEW_IMAGES = 20


@dataclass(frozen=True)
class InitialWeights:
    """Where weights come from: a file, ``torchvision:TAG`` or ``timm:TAG``; and how images were prepared, if known.

    ``record`` is the run.json of the run that made them, if one did.
    """

    file: str
    preprocess: Preprocess | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def check_classes(self, job: Job) -> None:
        """See that the last layer is for the classes of the data set.

        Raises:
            UserError: it is for others, or for these in another order.
        """
        cure = "; to train from these weights with a new last layer, add `recipe` and new_classifier: true"
        check_classes(self.record, job.manifest, f"{job.where}.weights: {self.file}", cure)


def initial_weights(job: Job) -> InitialWeights | None:
    """Find what ``weights`` names; another run gives those of its first seed.

    Raises:
        UserError: the other run was not made yet, was made from another configuration, or is deployed with a head.
    """
    origin = job.experiment.origin(job.run)
    if origin is None:
        named = job.spec.weights
        return None if named is None else InitialWeights(fetched(named), record=record_beside(named))
    experiment, run = origin
    seed = experiment.seeds(run)[0]
    record = checked_record(experiment, run, seed, job.results)
    if "head" in record:
        raise UserError(
            f"{job.where}.weights: {run!r} was trained by {record['head']['term']!r}, whose head replaced the last "
            "layer, so its weights do not fit the plain network; name a run whose objective has no such term"
        )
    weights = run_folder(job.results, experiment.name, run, seed) / "weights.safetensors"
    preprocess = Preprocess.model_validate(record["preprocess"])
    if preprocess.normalize == "dataset":
        # Of the data set that they were trained on, whatever they are shown now.
        preprocess = preprocess.model_copy(update={"normalize": Statistics.model_validate(record["statistics"])})
    return InitialWeights(str(weights), preprocess, record)


def network_of_weights(job: Job, source: InitialWeights) -> tuple[nn.Module, Taken, ClassMap | None]:
    """Build a run's network with the weights that its line names, for the data set's classes or for none.

    Where ``classes`` says that they know others, the third is which of these are the data set's.

    Raises:
        UserError: the weights do not fit, or none of their classes is one of the data set's.
    """
    spec, ours = job.spec, job.manifest.classes
    # Weights that an import filled up lack these classes wherever they go.
    unknown = () if spec.new_classifier else source.record.get("unknown_classes", ())
    classes = OWN_CLASSES if spec.classes is None and unknown else spec.classes
    with located(job.where):
        theirs = None if classes is None else weights_classes(classes, source.record)
        found = None if theirs is None else match_classes(ours, theirs, unknown)
    network = create_model(spec.model, len(ours) if spec.has_classifier else 0, **spec.model_args)
    if spec.classes is None and not spec.new_classifier:
        source.check_classes(job)
    # A network of the same kind, for the weights' own classes.
    donor = network if found is None else create_model(spec.model, found.total, **spec.model_args)
    without = spec.new_classifier or not spec.has_classifier
    taken = take_weights(donor, source.file, spec.model, spec.model_args, without, spec.weights_choice)
    if (line := taken.line(source.file)) is not None and "RANK" not in os.environ:
        print(printable(f"{job.name}: {line}"), file=sys.stderr)
    if found is not None:
        with located(job.where):
            keep_classes(network, donor, found, fill=spec.recipe is None)
        if "RANK" not in os.environ:
            print(printable(f"{job.name}: {found.line()}"), file=sys.stderr)
    return network, taken, found


def begin_network(job: Job) -> nn.Module:
    """Build a run's network as it is before the first step; random weights come from torch's global generator.

    Raises:
        UserError: the model or the weights that the run names cannot be had, or do not fit each other.
    """
    source = initial_weights(job)
    if source is None:
        network = create_model(job.spec.model, len(job.manifest.classes), **job.spec.model_args)
    else:
        network, _, _ = network_of_weights(job, source)
    recipe, drawn = job.spec.recipe, source is None or job.spec.new_classifier
    if recipe is not None and recipe.classifier_std is not None and drawn:
        with located(job.where):
            draw_classifier(network, recipe.classifier_std)
    return network


@dataclass(frozen=True)
class MeasuredTeacher:
    """A teacher before anybody learns from it.

    Attributes:
        run: its network.
        viewer: how its training images are prepared, where it must not see the student's squares.
        scores: for run.json, its top-1 (%) on the validation images as itself and as it will teach; of one without
            classifier, how many have the class of their nearest others (%).
    """

    run: FinishedRun
    viewer: Preprocess | None
    scores: dict[str, Any]


def restored_teacher(job: Job, recipe: Recipe, fabric: Fabric) -> tuple[FinishedRun, Preprocess | None]:
    """Load the teacher; and say how its training images are prepared, where it must not see the student's squares.

    Raises:
        UserError: it was not made yet, or is damaged.
    """
    name = job.teacher
    assert name is not None
    finished = restore_run(
        job.experiment, name, job.experiment.seeds(name)[0], job.results, fabric.device, job.manifest
    )
    return finished, finished.preprocess if recipe.trains_apart(finished.preprocess) else None


def finished_teacher(job: Job, recipe: Recipe, fabric: Fabric, validate: Validate) -> MeasuredTeacher | None:
    """Load the teacher and measure it, on its own images and on those it will teach by.

    Raises:
        UserError: it was not made yet, its metrics are damaged, it scores less than when it was evaluated, or, as it
            would teach, no more than guessing does.
    """
    name = job.teacher
    if name is None:
        return None
    finished, viewer = restored_teacher(job, recipe, fabric)
    _check_known(job, name, finished)
    if not has_classifier(finished.network):
        return MeasuredTeacher(
            finished, viewer, {"run": name} | _knn(job, finished, viewer or recipe.preprocess, fabric)
        )
    measured = validate(finished.predict, finished.preprocess)["top1"]
    shown = recipe.preprocess if viewer is None else viewer
    same = shown.pixels == finished.preprocess.pixels
    teaching = measured if same else validate(finished.predict, shown)["top1"]
    whose = "its own squares" if viewer else "the student's squares"
    fabric.print(
        f"{job.name}: teacher {name} scores {measured:.2f} % top-1 on the validation images, and {teaching:.2f} % on "
        f"those it teaches by ({whose} of {shown.size} pixels)"
    )
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
    images, classes = job.manifest.splits["val"].images, len(job.manifest.classes)
    if not job.experiment.rehearsal:
        missed = missed_top1(job.experiment.published, name, measured, images, finished.record)
        if missed is not None:
            fabric.print(f"{job.name}: warning: teacher {missed}")
    # A rehearsal's teacher has hardly been trained.
    if not job.experiment.rehearsal and is_chance(round(teaching / 100 * images), images, 1 / classes):
        _refuse_or_warn(
            job,
            fabric,
            images,
            f"{name} scores {teaching:.2f} % top-1 on the {images} validation images as it would "
            f"teach, no more than guessing one of {classes} classes may; are the classes in the order of the weights, "
            "and the images prepared as for them?",
        )
    return MeasuredTeacher(finished, viewer, {"run": name, "top1": measured, "top1_as_it_teaches": teaching})


def _knn(job: Job, finished: FinishedRun, shown: Preprocess, fabric: Fabric) -> dict[str, float]:
    """Measure a teacher without a classifier, for run.json; empty where the validation images cannot tell."""
    name, images = job.teacher, ArrowImages(job.data_folder, job.manifest, "val")
    loader = plain_loader(job, fabric, images, shown)
    with fabric.autocast():
        found = ask_neighbours(
            finished.predict, loader, len(job.manifest.classes), fabric.device, collective_of(fabric)
        )
    taught = f"{job.name}: teacher {name} has no classifier; it teaches by its features of {shown.size} pixels"
    if not found.finite:
        raise UserError(f"{finished.weights}: the network's embeddings are NaN or infinite; import or train it again")
    if not found.asked:
        fabric.print(f"{taught}; what these know is not measured: no two classes have two validation images each")
        return {}
    knn, by_pixels = 100 * found.right / found.asked, 100 * found.right_by_pixels / found.asked
    fabric.print(
        f"{taught}, by which {knn:.2f} % of {found.asked} validation images have the class of their nearest others "
        f"({by_pixels:.2f} % by 8 x 8 pixels)"
    )
    are_they = "are the weights those of this network, and the images prepared as for them?"
    if not job.experiment.rehearsal and is_chance(found.right, found.asked, found.guessing):
        _refuse_or_warn(
            job,
            fabric,
            found.asked,
            f"by the features of {name}, {knn:.2f} % of {found.asked} validation images have the class of their "
            f"nearest others, no more than naming one class always may ({100 * found.guessing:.2f} %); {are_they}",
        )
    elif not job.experiment.rehearsal and found.right <= found.right_by_pixels < found.asked:
        fabric.print(
            f"{job.name}: warning: teacher {name} tells classes no better apart than 8 x 8 pixels do; {are_they}"
        )
    return {"knn_of_validation": knn}


def _refuse_or_warn(job: Job, fabric: Fabric, images: int, line: str) -> None:
    line = f"{job.where}.teacher: {line}"
    if images >= FEW_IMAGES:
        raise UserError(line)
    fabric.print(f"{job.name}: warning: {line}")


def _check_known(job: Job, name: str, finished: FinishedRun) -> None:
    """See that the terms of the objective can learn from a teacher that does not know all classes."""
    unknown: list[str] = finished.record.get("unknown_classes", [])
    written = job.experiment.config.runs[job.run].objective.terms()
    for term, options in written.items() if unknown else ():
        if options.teacher not in (None, name) or not options.needs.teacher & {"logits", "classifier"}:
            continue
        lacks = f"{job.where}.objective.{term}: {name} does not know {len(unknown)} of the classes, as {unknown[0]!r}"
        if not options.takes_some_classes:
            raise UserError(
                f"{lacks}, which this term needs; use one that compares the others, as kd, or a teacher that knows all"
            )
        if options.teacher is None and job.place is not None:
            raise UserError(f"{lacks}, and is averaged with others that may; name one teacher in each term")


def is_chance(correct: int, images: int, share: float) -> bool:
    """Whether guessing, which is right so often (0 to 1), gets so many images or more with a probability above 5 %.

    Where even all images right would be no proof, only what guessing gets on average, or less, is chance.
    """
    if share**images > CHANCE:
        return correct <= share * images
    right = correct / images
    # Chernoff's bound tells a teacher that knows something without scipy, which takes a fifth of a second to import.
    if share < right < 1 and images * (
        right * math.log(right / share) + (1 - right) * math.log((1 - right) / (1 - share))
    ) > -math.log(CHANCE):
        return False
    from scipy.special import bdtrc

    # bdtrc(k, ...) is the probability of more than k.
    return correct == 0 or float(bdtrc(correct - 1, images, share)) > CHANCE
