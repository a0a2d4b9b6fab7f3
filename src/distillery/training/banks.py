"""What the banks of an experiment will hold, forecast before a teacher has answered: rows, bytes, and what is saved."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distillery.data.orders import repeated_length
from distillery.errors import located
from distillery.experiment import Experiment, RunSpec
from distillery.experiment.bank import bank_parts, banks_of, check_rows, holds_embedding, row_bytes, spec_by
from distillery.experiment.schema.teacher import TopRows
from distillery.models.facts import Network, embedding_width
from distillery.paths import bank_folder

# What a part has before its rows and in the record, and what a bank has beside its parts.
HEADER_BYTES, RECORD_BYTES = 200, 2_000
# Of a bank's many students, so many are named.
SHOWN = 8


@dataclass(frozen=True)
class BankForecast:
    """A bank of a teacher, and the runs and seeds that share it.

    Attributes:
        spec: the first of them, as this teacher meets it.
        rows: answers in each part; None until the data set is prepared.
        row_bytes: of an answer.
        live: how many images the teacher would answer without a bank.
    """

    teacher: str
    address: str
    members: list[tuple[str, int]]
    spec: RunSpec
    folder: Path
    rows: int | None
    row_bytes: int
    live: int

    @property
    def bytes(self) -> int:
        """Its size on disk; 0 where that is not known yet."""
        if self.rows is None:
            return 0
        return bank_parts(self.spec) * (HEADER_BYTES + self.rows * self.row_bytes) + RECORD_BYTES

    @property
    def answered(self) -> int:
        """How many images the teacher answers; 0 where that is not known yet."""
        return bank_parts(self.spec) * (self.rows or 0)

    def line(self) -> str:
        """It in words."""
        names = ", ".join(f"{run}/seed{seed}" for run, seed in self.members[:SHOWN])
        names += f" and {len(self.members) - SHOWN} more" if len(self.members) > SHOWN else ""
        assert self.spec.recipe is not None
        what = "views" if self.spec.recipe.crops is not None else "epochs"
        shared = f"bank {self.address} of {self.teacher}, for {names}: {bank_parts(self.spec)} {what}"
        if self.rows is None:
            return f"{shared}; its size is known once {self.spec.dataset} is prepared"
        return (
            f"{shared} of {self.rows:,} images, {self.row_bytes:,} bytes an image: {shown_bytes(self.bytes)}; the "
            f"teacher answers {self.answered:,} images, live it would answer {self.live:,}"
        )


def forecast_banks(
    experiment: Experiment, results: Path, images: int | None, classes: int | None
) -> Iterator[BankForecast]:
    """Forecast each bank of an experiment once, whoever shares it; images and classes are None until they are known.

    Raises:
        UserError: a bank is to keep more logits than there are.
    """
    for teacher in sorted(experiment.teachers):
        for address, members in banks_of(experiment, teacher).items():
            specs = [spec_by(experiment, *member, teacher) for member in members]
            spec = specs[0]
            assert spec.teacher is not None
            assert spec.answers is not None
            if classes is not None:
                with located(experiment.where(members[0][0])):
                    check_rows(spec.answers, classes)
            whole = isinstance(spec.answers.rows, TopRows) or not spec.teacher.has_classifier
            rows = None if images is None or (classes is None and not whole) else bank_rows(spec, images)
            each = row_bytes(spec.answers, (classes or 0) * spec.teacher.has_classifier, banked_features(spec))
            live = sum(spec.recipe.total_epochs * epoch_rows(spec, images or 0) for spec in specs if spec.recipe)
            folder = bank_folder(results, experiment.name, teacher, experiment.seeds(teacher)[0], address)
            yield BankForecast(teacher, address, members, spec, folder, rows, each, live)


def bank_rows(spec: RunSpec, images: int) -> int:
    """How many answers each part of a run's bank holds: one to each of the images of a view, or those of an epoch."""
    assert spec.recipe is not None
    return images if spec.recipe.crops is not None else epoch_rows(spec, images)


def epoch_rows(spec: RunSpec, images: int) -> int:
    """How many images a run sees in an epoch, with few labels as with all."""
    recipe, objective = spec.recipe, spec.objective
    assert recipe is not None
    assert objective is not None
    asked = objective.sampling()
    if spec.labels is not None and spec.labels.labelled_share is not None:
        length = images
    elif asked is not None:
        length = images * (1 + int(asked.arguments["partners"]))
    else:
        length = repeated_length(images) if recipe.repeats > 1 else images
    return length // recipe.batch * recipe.batch if recipe.drop_last else length


def banked_features(spec: RunSpec) -> int:
    """The width of the embedding that a row of a run's bank holds; 0 where it holds none."""
    if not holds_embedding(spec):
        return 0
    teacher = spec.teacher
    assert teacher is not None
    network = Network.named(teacher.model, 10 if teacher.has_classifier else 0, teacher.model_args)
    return embedding_width(network, None if teacher.prepared_for is None else teacher.prepared_for.size)


def shown_bytes(size: int) -> str:
    """A size in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
