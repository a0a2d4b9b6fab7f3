"""A resolved run: everything that decides what its weights will be, and nothing else."""

from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from distillery.errors import keyed, located
from distillery.experiment.address import Address, parse_address
from distillery.experiment.ledger import (
    DECAY_PATTERNS,
    ENGINE,
    IMPORTING,
    WITH_DECAY_PATTERNS,
    digest_of,
    entry,
    file_entry,
    images_entry,
    labels_entry,
)
from distillery.experiment.plugins import is_plugin, source_of
from distillery.experiment.schema.block import Block, Neutral, WeightsChoice
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.experiment import NO_CLASSES, OWN_CLASSES, WORDNET_LISTS
from distillery.experiment.schema.labels import FewLabels
from distillery.experiment.schema.objective import Objective
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.experiment.schema.teacher import Answers, TeacherMean
from distillery.experiment.zoo import ZOO

# What `weights` begins with that names a run, or a library's tag.
RUN_PREFIX = "run:"
TAG_PREFIXES = ("torchvision:", "timm:")


class Taught(Block):
    """One of several teachers of a run."""

    numerics = 1

    run: "RunSpec"
    weight: float = 1.0
    answers: Answers | None = None


class RunSpec(Block):
    """Everything that decides what a run's weights will be.

    Names of experiments, runs and machines are left out on purpose: renaming or moving never retrains.
    """

    dataset: str
    images: Dataset  # what datasets.yaml says of it
    model: str
    model_args: dict[str, bool | int | float | str] = Field({})
    seed: int
    weights: str | None = None
    initial: "RunSpec | None" = None  # the run whose weights these are, in place of `weights`
    nest: Annotated[str | None, Neutral(None)] = None
    prefix: Annotated[str | None, Neutral(None)] = None
    ignore: Annotated[tuple[str, ...], Neutral(())] = ()
    new_classifier: bool = False
    classes: Annotated[str | None, Neutral(None)] = None
    preprocess: Preprocess | None = None
    recipe: Recipe | None = None
    objective: Objective | None = None
    teacher: "RunSpec | None" = None
    teachers: Annotated[tuple[Taught, ...], Neutral(())] = ()  # where there are several, in place of `teacher`
    teacher_mean: Annotated[TeacherMean | None, Neutral(None)] = None
    teacher_norm: Literal["eval", "batch"] = "eval"
    margin_source: Literal["teacher", "pretrained"] = "teacher"
    labels: Annotated[FewLabels | None, Neutral(None)] = None
    answers: Annotated[Answers | None, Neutral(None)] = None
    _where: str = PrivateAttr("")

    def at(self, where: str) -> "RunSpec":
        """Itself, knowing where it stands, as ``config/digits.yaml: digits.runs.resnet8``, for errors."""
        self._where = where
        return self

    @property
    def address(self) -> Address | None:
        """Where `weights` are fetched from, if they are."""
        return None if self.weights is None else parse_address(self.weights)

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` names; None for addresses, for tags and for runs without."""
        if self.weights is None or self.weights.startswith(TAG_PREFIXES) or self.address is not None:
            return None
        return Path(self.weights).expanduser()

    @property
    def classes_file(self) -> Path | None:
        """The file that `classes` names; None for lists that are known by a word."""
        words = (None, OWN_CLASSES, NO_CLASSES, *WORDNET_LISTS)
        return None if self.classes in words else Path(str(self.classes)).expanduser()

    @property
    def has_classifier(self) -> bool:
        """Whether its network gives logits."""
        return self.classes != NO_CLASSES

    def by_teacher(self) -> "list[RunSpec]":
        """The run as each teacher meets it, alone with the terms that learn from it or from the teachers' mean.

        Where there is one, the run itself; no run where there is none. Banks do not know of other teachers.
        """
        if not self.teachers:
            return [self] if self.teacher is not None else []
        alone = {"teachers": (), "teacher_mean": None}
        assert self.objective is not None
        return [
            self.model_copy(
                update=alone
                | {
                    "teacher": taught.run,
                    "answers": taught.answers,
                    "objective": self.objective.of_teacher(taught.run.digest),
                }
            )
            for taught in self.teachers
        ]

    @property
    def weights_choice(self) -> WeightsChoice:
        """Which weights of the file to take."""
        return WeightsChoice(nest=self.nest, prefix=self.prefix, ignore=self.ignore)

    @property
    def prepared_for(self) -> Preprocess | None:
        """How images are prepared for the network, as far as the configuration says; a library's tag knows itself."""
        if self.recipe is not None:
            return self.recipe.preprocess
        return self.preprocess or (self.initial.prepared_for if self.initial is not None else None)

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """The spec as plain data, with the arguments of its network, the bytes of its weights, and all integers.

        Raises:
            UserError: the file of its weights cannot be read.
        """
        with located(self._where) if self._where else nullcontext():
            content = self._own_content()
        if self.address is not None:
            # Like a file's: from wherever they come, here or from a mirror, the same bytes are the same weights.
            content["weights"] = {"sha256": self.address.sha256}
        if self.weights is not None or self.initial is not None:
            content["importing"] = IMPORTING
        if self.initial is not None:
            content["initial"] = self.initial.ledger
            prepared = self.initial.prepared_for if self.recipe is None and self.preprocess is None else None
            # Before, mean and deviation were resolved anew, from the data set of this run.
            if prepared is not None and prepared.normalize == "dataset" and self.initial.dataset != self.dataset:
                content["statistics"] = "of the weights"
        if self.teacher is not None:
            content["teacher"] = self.teacher.ledger
            prepared = self.teacher.prepared_for
            # Before, all teachers saw the student's images.
            if self.recipe is not None and prepared is not None and self.recipe.trains_apart(prepared):
                content["teacher_images"] = "its own"
        if self.teachers:
            content["teachers"] = [entry(taught) | {"run": taught.run.ledger} for taught in self.teachers]
        if self.recipe is not None:
            content["engine"] = ENGINE
            # Before, connectors were computed in float32 whatever the networks were computed in.
            if self.recipe.precision != "32-true" and self.objective and "overhaul" in self.objective.terms():
                content["connectors"] = self.recipe.precision
            if self.model.startswith(WITH_DECAY_PATTERNS) and self.recipe.optimizer.name != "sgd":
                content["decay_patterns"] = DECAY_PATTERNS
        return content

    def _own_content(self) -> dict[str, Any]:
        """What the ledger has of no other run."""
        content: dict[str, Any] = entry(self)
        content["images"] = images_entry(self.images)
        if self.labels is not None:
            content["labels"] = labels_entry(self.labels)
        if self.model in ZOO:
            network = ZOO[self.model]
            content["network"] = {**network.fixed, "numerics": network.numerics}
        elif is_plugin(self.model):
            with keyed("model"):
                content["network"] = {"source": source_of(self.model)}
        if self.weights_file is not None:
            content["weights"] = file_entry("weights", self.weights_file)
        if self.classes_file is not None:
            content["classes"] = file_entry("classes", self.classes_file)
        return content

    @cached_property
    def digest(self) -> str:
        """16 hex digits that stand for the ledger."""
        return digest_of(self.ledger)
