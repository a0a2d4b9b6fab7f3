"""What is known of networks: kept between processes, forgotten with other code, never taken for more than it is."""

import json

import pytest

from distillery.errors import UserError
from distillery.experiment.plugins import use_project
from distillery.models import create_model, facts, registry
from distillery.models.facts import (
    Network,
    embedding_width,
    network_bytes,
    own_stage_count,
    paired_stage_count,
    stage_count,
)


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Begin as a process does that knows only what others have written; the function ends one and begins another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(facts, "SHIPPED", tmp_path / "shipped.json")
    ends = []
    monkeypatch.setattr(facts.atexit, "register", ends.append)

    def another():
        for end in ends:
            end()
        ends.clear()
        facts._planned.cache_clear()
        facts._facts.cache_clear()
        return tmp_path / "distillery" / "networks.json"

    another()
    yield another
    facts._facts.cache_clear()


@pytest.fixture
def built(monkeypatch):
    """The names of the networks that are built."""
    names = []

    def build(name, classes, /, **arguments):
        names.append(name)
        return create_model(name, classes, **arguments)

    monkeypatch.setattr(registry, "create_model", build)
    return names


def test_a_network_is_built_once_for_all_processes(process, built):
    arguments = (("width", 8),)
    first = network_bytes(Network("cifar_resnet8", 10, arguments))
    assert first == 4 * sum(value.numel() for value in create_model("cifar_resnet8", 10, width=8).state_dict().values())
    process()
    assert network_bytes(Network("cifar_resnet8", 10, arguments)) == first
    assert built == ["cifar_resnet8"]
    assert network_bytes(Network("cifar_resnet8", 11, arguments)) > first
    assert network_bytes(Network("cifar_resnet8", 10, arguments), 8) == first
    assert len(built) == 3


def test_what_networks_give_is_kept_too(process, built):
    student, teacher = Network("cifar_resnet8", 2), Network("cifar_wrn_16_2", 2)

    def found():
        pair = paired_stage_count(teacher, student, 32)
        return embedding_width(student, None), stage_count(student, 32), own_stage_count(teacher, 32), pair

    first = found()
    assert first == (64, 3, 3, 3)
    process()
    built.clear()
    assert found() == first
    assert built == []


def test_a_plugin_of_another_project_and_arguments_that_python_takes_for_equal_are_others(process, tmp_path):
    network = Network("plugins.own:net", 2)
    for width in (8, 16):
        folder = tmp_path / f"project{width}"
        (folder / "plugins").mkdir(parents=True)
        (folder / "plugins/own.py").write_text(
            "from distillery.models import create_model\n\n\n"
            f"def net(num_classes):\n    return create_model('cifar_resnet8', num_classes, width={width})\n"
        )
        use_project(folder)
        assert (stage_count(network, 32), embedding_width(network, 32)) == (3, 4 * width)
    assert embedding_width(Network("cifar_resnet8", 2, (("width", 1),)), 32) == 4
    with pytest.raises(UserError, match=r"^model_args"):
        embedding_width(Network("cifar_resnet8", 2, (("width", True),)), 32)


def test_other_code_damaged_files_and_folders_without_permission_forget_all(process, built, monkeypatch):
    network_bytes(Network("cifar_resnet8", 10))
    path = process()
    with monkeypatch.context() as patched:
        patched.setattr(facts, "_code", lambda: "other")
        network_bytes(Network("cifar_resnet8", 10))
        process()
    for content in ("{", "[]", json.dumps({"code": facts._code(), "facts": None})):
        path.write_text(content)
        network_bytes(Network("cifar_resnet8", 10))
        process()
        assert json.loads(path.read_text())["facts"]
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("")
    network_bytes(Network("cifar_resnet8", 10))
    process()
    assert len(built) == 6


def test_what_is_shipped_of_the_same_code_is_not_built(process, built):
    network = Network("cifar_resnet8", 10)
    known = {json.dumps(["bytes", network, None, None]): 5}
    for code, found, kept in (("other", 303108, True), (facts._code(), 5, False)):
        facts.SHIPPED.write_text(json.dumps({"code": code, "facts": known}))
        path = process()
        path.unlink(missing_ok=True)
        assert network_bytes(network) == found
        assert process().exists() == kept
        path.unlink(missing_ok=True)
        process()
    assert len(built) == 1


@pytest.mark.slow
def test_what_is_refused_is_refused_again(process):
    for _ in range(2):
        with pytest.raises(UserError, match=r"^model: no model 'cifar_resnet9'"):
            network_bytes(Network("cifar_resnet9", 10))
        with pytest.raises(UserError, match=r"^model_args.widht: "):
            network_bytes(Network("cifar_resnet8", 10, (("widht", 8),)))
        with pytest.raises(UserError, match=r"cannot take images of 2 x 2 pixels"):
            network_bytes(Network("vgg11", 10), 2)
        process()
