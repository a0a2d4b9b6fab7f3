"""A project's own models and terms: found, hashed, and refused in one line."""

import pytest

from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.plugins import load_plugin, source_of, use_project
from distillery.models import create_model

MODEL = '''"""Mine."""
from torch import nn

from plugins.parts import WIDTH  # a plugin of its own


def net(num_classes: int, width: int = WIDTH) -> nn.Module:
    """Build it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.ReLU(), nn.Linear(width, num_classes))


def nothing(num_classes: int) -> None:
    pass
'''
TERM = """from typing import ClassVar

from distillery.distill.term import Term
from distillery.experiment.schema.objective import Needs, TermOptions


class GapOptions(TermOptions):
    needs: ClassVar[Needs] = Needs(student={"logits"}, teacher={"logits"})
    implementation: ClassVar[str] = "plugins.gap:Gap"

    power: float = 2.0


class Gap(Term):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, inputs):
        return (inputs.student.logits_BC - inputs.teacher.logits_BC).abs().pow(self.power).mean()


TERMS = {"gap": GapOptions}
"""


@pytest.fixture
def project(workplace):
    """The tiny project with a model and a term of its own, which `taught` uses."""
    folder = workplace.folder / "plugins"
    folder.mkdir()
    (folder / "parts.py").write_text("WIDTH = 16\n")
    (folder / "nets.py").write_text(MODEL)
    (folder / "gap.py").write_text(TERM)
    workplace.edit("taught: {model: cifar_resnet8", "taught: {model: plugins.nets:net")
    workplace.edit("kd: {weight: 0.5, temperature: 2}", "gap: {weight: 0.5, power: 1.5}")
    return workplace


def spec(project, run="taught"):
    return load_experiment(project.experiment).spec(run, 0)


def edit(project, name, old, new):
    path = project.folder / "plugins" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.slow
def test_a_run_trains_with_both_and_a_second_process_restores_it(project, one_thread):
    from distillery.evaluation.evaluate import evaluate_run

    project.make("big")
    folder = project.make("taught")
    assert "gap" in (folder / "history.csv").read_text().splitlines()[0]
    assert evaluate_run(load_experiment(project.experiment), "taught", 0, project.results, workers=0)["top1"] >= 0


def test_options_are_checked_as_those_of_any_term(project):
    objective = spec(project).objective
    assert objective.terms()["gap"].power == 1.5
    assert objective.needs().teacher == {"logits"}
    project.edit("power: 1.5", "powr: 1.5")
    with pytest.raises(UserError, match=r"tiny.runs.taught.objective.gap.powr: unknown key 'powr'"):
        spec(project)


def test_a_rehearsal_has_them_too(project):
    rehearsed = load_experiment(project.experiment, rehearsal=True)
    assert "gap" in rehearsed.spec("taught", 0).objective.terms()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("nets.py", '"""Mine."""', '"""Better said."""'),
        ("nets.py", "  # a plugin of its own", ""),
        ("nets.py", '    """Build it."""\n', ""),
        ("nets.py", "nn.Sequential(nn.Flatten(), ", "nn.Sequential(\n        nn.Flatten(),\n        "),
        ("gap.py", "from typing", "# A gap.\n\nfrom typing"),
    ],
)
def test_words_and_layout_of_a_plugin_retrain_nothing(project, name, old, new):
    before = spec(project).digest
    edit(project, name, old, new)
    assert spec(project).digest == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("nets.py", "nn.ReLU()", "nn.GELU()"),
        ("parts.py", "16", "24"),
        ("gap.py", ".mean()", ".sum()"),
        ("gap.py", "power: float = 2.0", "power: float = 3.0"),
    ],
)
def test_what_a_plugin_computes_is_in_the_digest_of_the_runs_that_use_it(project, name, old, new):
    before, other = spec(project).digest, spec(project, "small").digest
    edit(project, name, old, new)
    assert spec(project).digest != before
    assert spec(project, "small").digest == other


def test_a_term_in_a_file_of_its_own_is_hashed_too(project):
    edit(project, "gap.py", '"plugins.gap:Gap"', '"plugins.elsewhere:Gap"')
    (project.folder / "plugins" / "elsewhere.py").write_text(
        "from plugins.gap import Gap as Base\n\n\nclass Gap(Base): ...\n"
    )
    before = spec(project).digest
    edit(project, "elsewhere.py", "...", "numerics = 2")
    assert spec(project).digest != before


MODEL_FAULTS = [
    ("plugins.nets:nett", r"model: .*plugins/nets.py: has no 'nett'; did you mean 'net'\?"),
    ("plugins.net:net", r"model: no file .*plugins/net.py; did you mean 'nets'\?"),
    ("plugins.nets", r"model: 'plugins.nets' names no part of a plugin; write plugins.FILE:NAME"),
    ("plugins.nets:nothing", "model 'plugins.nets:nothing': must give a torch.nn.Module; it gave a NoneType"),
]


@pytest.mark.parametrize(("name", "line"), MODEL_FAULTS)
def test_a_model_that_is_not_there(project, name, line):
    use_project(project.folder)
    with pytest.raises(UserError, match=line):
        create_model(name, 3)


@pytest.mark.parametrize(("name", "line"), MODEL_FAULTS[:3])
def test_planning_says_so_before_a_job_starts(project, name, line):
    project.edit("plugins.nets:net,", f"{name},")
    with pytest.raises(UserError, match=line):
        _ = spec(project).digest


def test_arguments_of_ones_own_model_are_checked(project):
    use_project(project.folder)
    assert create_model("plugins.nets:net", 3, width=5)[1].out_features == 5
    with pytest.raises(
        UserError, match=r"model_args.widht: plugins.nets:net has no argument 'widht'; did you mean 'width'"
    ):
        create_model("plugins.nets:net", 3, widht=5)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import torhc\n", r"plugins/gap.py:1: cannot be imported: ModuleNotFoundError: No module named 'torhc'"),
        ("\nx = 1 / 0\n", r"plugins/gap.py:2: cannot be imported: ZeroDivisionError: division by zero"),
        ("\n\nclass GapOptions:\n    pass\n", "the options of the term 'gap' must be a class made from TermOptions"),
    ],
)
def test_a_plugin_that_cannot_be_imported(project, text, line):
    (project.folder / "plugins" / "gap.py").write_text(f"{text}TERMS = {{'gap': GapOptions}}\n")
    with pytest.raises(UserError, match=rf"tiny.runs.taught.objective: .*{line}"):
        spec(project)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def net(:\n", r"plugins/late.py:1: cannot be imported: SyntaxError: "),
        ("TERMS = {'kd': Mine}", r"plugins/late.py: TERMS: 'kd' is a term of Distillery's; give yours another name"),
        ("TERMS = {'gap': Mine}", r"plugins/late.py: TERMS: .*plugins/gap.py has a term 'gap' too; rename one"),
        ("TERMS = {'terms': Mine}", r"plugins/late.py: TERMS: 'terms' cannot name a term"),
        ("TERMS = {'loss': Mine}", r"plugins/late.py: TERMS: 'loss' cannot name a term"),
        ("TERMS = {'my-term': Mine}", r"plugins/late.py: TERMS: 'my-term' cannot name a term"),
    ],
)
def test_a_file_that_stands_in_the_way(project, text, line):
    (project.folder / "plugins" / "late.py").write_text(text)
    with pytest.raises(UserError, match=line):
        spec(project)


def test_an_unknown_term_is_still_an_unknown_key(project):
    project.edit("gap: {weight", "gapp: {weight")
    with pytest.raises(UserError, match=r"tiny.runs.taught.objective.gapp: unknown key 'gapp'"):
        spec(project)


def test_each_project_has_its_own_plugins(project, tmp_path):
    other = tmp_path / "other" / "plugins"
    other.mkdir(parents=True)
    (other / "nets.py").write_text("net = 'the other'\n")
    use_project(other.parent)
    assert load_plugin("plugins.nets:net") == "the other"
    theirs = source_of("plugins.nets:net")
    use_project(project.folder)
    assert callable(load_plugin("plugins.nets:net"))
    assert source_of("plugins.nets:net") != theirs
