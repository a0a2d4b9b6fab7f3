"""Banks of answers: what decides one, which runs share it, and how large a row of it is.

A bank holds a teacher's answers to the augmented images of some runs: a part an epoch, or a part a view where the
recipe says ``crops``. Runs whose ledgers of the bank are equal share one, whatever their objectives and networks, and
with ``crops`` their seeds.
"""

from typing import Any

from distillery.errors import UserError
from distillery.experiment.experiment import Experiment
from distillery.experiment.ledger import ENGINE, digest_of, entry, images_entry, labels_entry
from distillery.experiment.schema.teacher import Answers, TopRows
from distillery.experiment.spec import RunSpec

# How a bank is laid out: raise it when its files are to be read in another way.
LAYOUT = 1


def bank_ledger(spec: RunSpec) -> dict[str, Any]:
    """All that decides the bank of a run that learns from one, besides the prepared images themselves."""
    recipe, objective = spec.recipe, spec.objective
    assert recipe is not None
    assert objective is not None
    assert spec.teacher is not None
    content = {
        "layout": LAYOUT,
        "engine": ENGINE,
        "teacher": spec.teacher.digest,
        "dataset": spec.dataset,
        "images": images_entry(spec.images),
        "answers": entry(spec.answers),
        "embedding": holds_embedding(spec),
        **{key: entry(getattr(recipe, key)) for key in ("preprocess", "augment", "precision", "channels_last")},
    }
    if recipe.crops is not None:
        return content | {"crops": recipe.crops}
    sampling = objective.sampling()
    # What an image is mixed with is decided by what decides the batches.
    content |= {} if recipe.mix is None else {"mix": entry(recipe.mix)}
    return content | {
        "seed": spec.seed,
        "epochs": recipe.total_epochs,
        "sampling": None if sampling is None else [sampling.order, dict(sampling.arguments)],
        "labels": None if spec.labels is None else labels_entry(spec.labels),
        **{key: entry(getattr(recipe, key)) for key in ("batch", "repeats", "drop_last")},
    }


def bank_address(spec: RunSpec) -> str:
    """16 hex digits that name the bank of a run that learns from one."""
    return digest_of(bank_ledger(spec))


def holds_embedding(spec: RunSpec) -> bool:
    """Whether the objective learns from the teacher's embedding too, and not from its logits alone."""
    return spec.objective is not None and "embedding" in spec.objective.needs().teacher


def bank_parts(spec: RunSpec) -> int:
    """How many epochs or views a bank holds."""
    assert spec.recipe is not None
    return spec.recipe.crops or spec.recipe.total_epochs


def row_bytes(answers: Answers, classes: int, features: int = 0) -> int:
    """The bytes of one image's answer; ``features`` is the width of the embedding, 0 where none is stored."""
    if isinstance(answers.rows, TopRows):
        return 4 * answers.rows.top + 4
    return (4 if answers.rows == "float32" else 2) * (classes + features)


def check_rows(answers: Answers, classes: int) -> None:
    """See that rows keep fewer logits than there are.

    Raises:
        UserError: they do not; the line begins with the key.
    """
    if isinstance(answers.rows, TopRows) and answers.rows.top >= classes:
        raise UserError(
            f"teacher.rows: top {answers.rows.top} of {classes} logits would be all of them; give fewer, or write "
            "float16"
        )


def banks_of(experiment: Experiment, teacher: str) -> dict[str, list[tuple[str, int]]]:
    """The banks of a teacher by address, and the runs and seeds that learn from each."""
    found: dict[str, list[tuple[str, int]]] = {}
    for run in experiment.trained():
        if teacher not in experiment.teachers_of(run):
            continue
        for seed in experiment.seeds(run):
            spec = spec_by(experiment, run, seed, teacher)
            if spec.answers is not None:
                found.setdefault(bank_address(spec), []).append((run, seed))
    return found


def spec_by(experiment: Experiment, run: str, seed: int, teacher: str) -> RunSpec:
    """A run as one of its teachers meets it."""
    return experiment.spec(run, seed).by_teacher()[experiment.teachers_of(run).index(teacher)]
