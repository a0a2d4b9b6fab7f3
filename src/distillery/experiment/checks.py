"""What the schema cannot see: which keys of a run go together, and names that point at each other."""

from typing import Any

from distillery.errors import UserError, located
from distillery.experiment.experiment import Experiment
from distillery.experiment.reading import nearest
from distillery.experiment.schema.block import WeightsChoice
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.experiment import NO_CLASSES, RunConfig
from distillery.experiment.schema.objective import STAGEWISE, terms_with_teacher, terms_without_logits
from distillery.experiment.schema.recipe import Recipe
from distillery.experiment.schema.teacher import TeacherConfig, TopRows

# What a bank holds of a teacher.
BANKED = frozenset({"logits", "embedding"})


def check_run(
    where: str, config: RunConfig, overrides: dict[str, Any], recipe: Recipe | None, dataset: Dataset
) -> None:
    """Check which keys of a run go together."""
    if config.recipe is not None and dataset.split == "evaluation" and dataset.unlabelled is None:
        raise UserError(
            f"{where}.recipe: the data set is for evaluation and has no images to train on; import `weights`"
        )
    if config.recipe is None and config.weights is None:
        raise UserError(f"{where}: a run needs `recipe` (to train), `weights` (to import) or both; found neither")
    if config.recipe is None:
        own = config.model_fields_set - {
            "model",
            "model_args",
            "recipe",
            "weights",
            "classes",
            *WeightsChoice.model_fields,
        }
        stray = sorted(set(overrides) - {"preprocess"}) + sorted(own)
        if stray:
            raise UserError(f"{where}.{stray[0]}: imported weights are not trained; remove this key or add `recipe`")
    for key in ("teacher_norm", "margin_source", "teacher_mean"):
        if config.teacher is None and key in config.model_fields_set:
            raise UserError(f"{where}.{key}: there is no `teacher`; remove this key")
    _check_classes(where, config)
    chosen = [key for key in WeightsChoice.model_fields if getattr(config, key)]
    if chosen and (config.weights is None or config.weights.startswith(("run:", "torchvision:", "timm:"))):
        raise UserError(f"{where}.{chosen[0]}: `weights` names no file of which this could choose a part; remove it")
    if config.new_classifier and config.weights is None:
        raise UserError(f"{where}.new_classifier: there are no `weights` whose classifier it could replace")
    if (
        recipe is not None
        and recipe.classifier_std is not None
        and config.weights is not None
        and not config.new_classifier
    ):
        raise UserError(
            f"{where}.classifier_std: {recipe.classifier_std} has no effect, the last layer is that of `weights`; "
            "write `classifier_std: null` or `new_classifier: true`"
        )


def _check_classes(where: str, config: RunConfig) -> None:
    """Which classes weights know, where these are not the data set's."""
    if config.classes is None:
        return
    if config.weights is None:
        raise UserError(f"{where}.classes: there are no `weights` that could know other classes; remove this key")
    if config.new_classifier:
        raise UserError(
            f"{where}.classes: {config.classes} has no effect with `new_classifier: true`, which leaves the weights of "
            "classes out; remove either"
        )
    if config.classes == NO_CLASSES and config.recipe is not None:
        raise UserError(f"{where}.classes: a network without classifier is not trained; write new_classifier: true")


def check_experiment(experiment: Experiment) -> None:
    """Check what the schema cannot see: names that point at each other."""
    runs = experiment.config.runs
    for run in runs:
        _check_teacher(experiment, run)
    for run in runs:
        where = experiment.where(run)
        _check_descent(experiment, run)
        _check_sampling(experiment, run)
        _check_answers(experiment, run)
        if len(set(experiment.seeds(run))) != len(experiment.seeds(run)):
            raise UserError(f"{where}.seeds: a seed occurs twice")
    for table, block in experiment.config.tables.items():
        for row in block.runs():
            if row not in runs:
                where = f"{experiment.path}: {experiment.name}.tables.{table}.{'grid' if block.grid else 'rows'}"
                raise UserError(f"{where}: no run {row!r}; {nearest(row, runs)}")
        if block.baseline is not None and block.baseline not in runs:
            where = f"{experiment.path}: {experiment.name}.tables.{table}.baseline"
            raise UserError(f"{where}: no run {block.baseline!r}; {nearest(block.baseline, runs)}")


def large_memories(experiment: Experiment) -> list[str]:
    """A line for every run of which a term remembers a GB or more, where the data set's line gives its size."""
    images, classes = experiment.dataset.images.get("train"), experiment.dataset.classes
    if images is None or classes is None:
        return []
    return [
        f"{run}: {name} remembers {size / 1e9:.1f} GB about {images:,} images, in each process and each checkpoint"
        for run in experiment.recipes
        for name, options in experiment.config.runs[run].objective.terms().items()
        if (size := options.memory(images, classes)) >= 1e9
    ]


def _check_teacher(experiment: Experiment, run: str) -> None:
    runs = experiment.config.runs
    config = runs[run]
    where = experiment.where(run)
    learns = [name for name, options in config.objective.terms().items() if options.needs.teacher]
    names = experiment.teachers_of(run)
    for term, options in config.objective.terms().items():
        if options.teacher is not None and (term not in learns or options.teacher not in names):
            known = nearest(options.teacher, names) if term in learns else "it learns from no teacher; remove this key"
            raise UserError(f"{where}.objective.{term}.teacher: {options.teacher!r} does not teach it; {known}")
    if config.teacher is None:
        if learns:
            raise UserError(f"{where}.teacher: missing; the objective's term {learns[0]!r} learns from a teacher")
        return
    for name in names:
        if name not in runs:
            raise UserError(f"{where}.teacher: no run {name!r}; {nearest(name, runs)}")
    if not learns:
        raise UserError(
            f"{where}.teacher: no term of the objective uses {names[0]!r}; "
            f"add {', '.join(terms_with_teacher()[:-1])} or {terms_with_teacher()[-1]}, or remove it"
        )
    _check_several(where, config, names)
    for name in names:
        _check_one_teacher(where, config, name, runs[name])


def _check_several(where: str, config: RunConfig, names: list[str]) -> None:
    """Which term learns from which of the teachers."""
    terms = {name: options for name, options in config.objective.terms().items() if options.needs.teacher}
    unnamed = [term for term, options in terms.items() if options.teacher is None]
    weights = [taught for taught in config.teachers if "weight" in taught.model_fields_set]
    if (weights or config.teacher_mean is not None) and (len(names) == 1 or not unnamed):
        key = "weight" if weights else "mean"
        raise UserError(f"{where}.teacher{'.' if weights else '_'}{key}: nothing is averaged over teachers; remove it")
    if len(names) == 1:
        return
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}.teacher: {name!r} stands there twice; give it a `weight`")
        if not unnamed and name not in {options.teacher for options in terms.values()}:
            raise UserError(
                f"{where}.teacher: no term learns from {name!r}; name it as a term's `teacher` or remove it"
            )
    for term in unnamed:
        if terms[term].needs.teacher - {"logits"}:
            raise UserError(
                f"{where}.objective.{term}.teacher: missing; only logits are averaged, and the term learns from the "
                f"teacher's {min(terms[term].needs.teacher - {'logits'})}; name one of {', '.join(names)}"
            )
    deep = {options.teacher: term for term, options in terms.items() if options.needs.teacher & STAGEWISE}
    if len(deep) > 1:
        raise UserError(
            f"{where}.objective: {' and '.join(deep.values())} learn from stages of two teachers; stages are "
            "paired with those of one"
        )
    view = next((term for term, options in terms.items() if options.needs.view), None)
    if view is not None:
        raise UserError(f"{where}.objective.{view}: shows a second view, which only one teacher can see; leave one")


def _check_one_teacher(where: str, config: RunConfig, name: str, teacher: RunConfig) -> None:
    if teacher.classes == NO_CLASSES:
        for term, options in config.objective.terms().items():
            if options.teacher in (None, name) and options.needs.teacher & {"logits", "classifier"}:
                raise UserError(
                    f"{where}.objective.{term}: learns from the teacher's logits, but {name!r} has no classifier "
                    f"(`classes: none`); learn from its features: {', '.join(terms_without_logits())}"
                )
    learns = [options for options in config.objective.terms().values() if options.teacher in (None, name)]
    asked = config.margin_source == "pretrained" and (
        len(config.teachers) == 1 or any(options.needs.margins for options in learns)
    )
    if asked and (teacher.recipe is None or teacher.weights is None):
        raise UserError(f"{where}.margin_source: {name!r} was not trained from `weights`; write teacher")
    if config.margin_source == "pretrained" and not config.objective.needs().margins:
        raise UserError(f"{where}.margin_source: no term of the objective has margins; remove this key")


def _check_answers(experiment: Experiment, run: str) -> None:
    """A bank holds what a teacher says of single images, and of each only what a row has room for."""
    config, recipe = experiment.config.runs[run], experiment.recipes.get(run)
    for taught in config.teachers:
        if recipe is not None and taught.stored is not None:
            _check_bank(experiment.where(run), config, recipe, taught, len(config.teachers))


def _check_bank(where: str, config: RunConfig, recipe: Recipe, taught: TeacherConfig, teachers: int) -> None:
    live, answers = "write `answers: live`", taught.stored
    assert answers is not None
    for name, options in config.objective.terms().items():
        if teachers > 1 and options.teacher not in (None, taught.run):
            continue
        asked = [*sorted(options.needs.teacher - BANKED), *(["a second view"] if options.needs.view else [])]
        if options.needs.teacher and asked:
            raise UserError(
                f"{where}.teacher.answers: {name!r} learns from the teacher's {asked[0]}, and a bank holds "
                f"{' and '.join(sorted(BANKED))} alone; {live}"
            )
        if "embedding" in options.needs.teacher and isinstance(answers.rows, TopRows):
            raise UserError(
                f"{where}.teacher.rows: top {answers.rows.top} holds logits alone, but {name!r} learns from the "
                "teacher's embedding; write float32 or float16"
            )
    if (config.teacher_norm or config.objective.default_teacher_norm()) == "batch":
        raise UserError(
            f"{where}.teacher_norm: with `batch`, an answer depends on the other images of its batch, which a "
            f"bank does not know; {live} or `teacher_norm: eval`"
        )
    if recipe.mix is not None and recipe.crops is not None:
        raise UserError(
            f"{where}.mix: with `crops`, a bank holds {recipe.crops} views of each image, and each epoch mixes "
            f"others of them; {live}, `crops: null` or `mix: null`"
        )


def _check_descent(experiment: Experiment, run: str) -> None:
    """No run may descend from itself, by teachers or by weights, on whatever experiments they stand."""

    def visit(descendants: tuple[str, ...], experiment: Experiment, run: str) -> None:
        name = f"{experiment.name}/{run}"
        if name in descendants:
            circle = " <- ".join([*descendants[descendants.index(name) :], name])
            raise UserError(f"{start}: {circle} descend from each other in a circle")
        if run not in experiment.config.runs:
            return  # on another experiment, whose own check says it better
        for parent in experiment.parents(run):
            visit((*descendants, name), *parent)

    start = experiment.where(run)
    visit((), experiment, run)


def _check_sampling(experiment: Experiment, run: str) -> None:
    """Mixing pairs a batch's images, and terms may ask for batches of their own."""
    recipe, where = experiment.recipes.get(run), experiment.where(run)
    if recipe is None:
        return
    if recipe.mix is not None and (recipe.batch % 2 or not recipe.drop_last):
        raise UserError(f"{where}.mix: needs an even `batch` and `drop_last: true`")
    labels = experiment.labels(run)
    with located(where):
        objective = experiment.config.runs[run].objective
        objective.check(recipe)
        if experiment.dataset.classes is not None:
            objective.check_classes(experiment.dataset.classes)
        if labels is not None:
            labels.check(objective, recipe)
