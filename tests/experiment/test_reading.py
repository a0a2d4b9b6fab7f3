"""YAML says what it looks like, or is refused in one line; no file of any kind is waited for or fills the memory."""

import os
import shutil
import socket
import time

import pytest

from distillery.errors import UserError
from distillery.experiment import reading
from distillery.experiment.reading import MOST_BYTES, MOST_KEPT, parse_yaml, read_mapping

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10)
)
MAPPING_BOMB = "a0: &a0 {x: y}\n" + "".join(
    f"a{level}: &a{level} {{{', '.join(f'k{key}: *a{level - 1}' for key in range(9))}}}\n" for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 010", "f:1:4: 010 is not a plain finite number; write 10, or put it in quotes if it is text"),
        ("a: -010", "write -10, or"),
        ("a: 0x1F", "0x1F is not a plain finite number; write decimal digits, or"),
        ("a: 0b11", "0b11 is not a plain"),
        ("a: 0o17", "0o17 is text in YAML and looks like a number"),
        ("a: 08", "08 is text in YAML and looks like a number; write 8, or"),
        ("a: 1_000", "1_000 is not a plain finite number; write 1000, or"),
        ("a: 1_0.5", "1_0.5 is not a plain finite number; write 10.5, or"),
        ("a: 1:30", "1:30 is not a plain finite number"),
        ("a: 1:30.5", "1:30.5 is not a plain"),
        ("a: .inf", ".inf is not a plain finite number"),
        ("a: [-.Inf]", "-.Inf is not a plain finite number"),
        ("a: {b: .nan}", ".nan is not a plain finite number"),
        ("a: 1.0e+400", "1.0e+400 is not a plain finite number"),
        ("a: 1e-3", "1e-3 is text in YAML and looks like a number; write 1.0e-3, or put it in quotes"),
        ("a: 1e-6", "write 1.0e-6, or"),
        ("a: 1.0e3", "write 1.0e+3, or"),
        ("a: 2024-01-01", "2024-01-01 is a date in YAML; put it in quotes if it is text"),
        ("a: !!int '3'", "the tag 'int' is not supported; write the plain value"),
        ("a: !!python/object:os.system x", "is not supported; write the plain value"),
        ("a: !!binary aGk=", "the tag 'binary' is not supported"),
        ("no: 1", "f:1:1: key `no` means false in YAML, not text; put it in quotes"),
        ("On: 1", "key `On` means true in YAML, not text; put it in quotes"),
        ("a: {null: 1}", "key `null` is null in YAML, not text; put it in quotes"),
        ("a: {~: 1}", "key `~` is null in YAML"),
        ("a: {12: 1}", "key `12` is a number in YAML, not text; put it in quotes"),
        ("a: {1.5: 1}", "key `1.5` is a number in YAML"),
        ("a: {2024-01-01: 1}", "key `2024-01-01` is a date in YAML"),
        ("a: {[b]: 1}", "a key must be plain text"),
        ("a: {b: 1, b: 2}", "key 'b' occurs twice"),
        ("a: {b: 1, 'b': 2}", "key 'b' occurs twice"),
        ("a: &x [*x]", "*x stands inside of itself"),
        ("a: *x", "f:1:4: found undefined alias"),
        (BOMB, "more than 100,000 values, aliases counted in full"),
        (MAPPING_BOMB, "more than 100,000 values, aliases counted in full"),
        (f"a: {'[' * 100_000}", "nested too deeply for a configuration"),
        ("\n".join(" " * depth + "a:" for depth in range(200)), "nested too deeply for a configuration"),
        ("- " * 200, "nested too deeply for a configuration"),
        ("a: [1", "did not find expected ',' or ']'"),
        ("a: \x00", "f: not valid YAML"),
    ],
)
def test_what_is_not_what_it_looks_like_is_refused_at_once_and_in_one_line(text, message):
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "f")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - began < 2


def test_plain_values_stay_what_they_are():
    text = "a: [1, -2, +3, 0, 0.5, .5, 1., 1.0e-3, -1.5E+2, true, no, null, x, '010', \"no\", 1.2.3, v1, 3/4, 10%, -]"
    assert parse_yaml(text, "f") == {
        "a": [1, -2, 3, 0, 0.5, 0.5, 1.0, 0.001, -150.0, True, False, None, "x", "010", "no", "1.2.3", "v1", "3/4",
              "10%", "-"]
    }  # fmt: skip


def test_aliases_and_merge_keys_work_and_own_keys_win_over_merged_ones():
    text = "base: &base {x: 1, y: 2}\na: {<<: *base, y: 3}\nb: &b {<<: *base, z: 4}\nc: {<<: [*b, *base], z: 5}\nd: *b"
    content = parse_yaml(text, "f")
    assert content["a"] == {"x": 1, "y": 3}
    assert content["b"] == content["d"] == {"x": 1, "y": 2, "z": 4}
    assert content["c"] == {"x": 1, "y": 2, "z": 5}
    with pytest.raises(UserError, match="expected a mapping or list of mappings for merging"):
        parse_yaml("a: {<<: 3}", "f")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "large", "dangling"])
def test_what_is_no_file_of_a_configuration_is_refused_without_waiting(tmp_path, monkeypatch, kind):
    path = tmp_path / "page.yaml"
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("page.yaml")
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**30)
    else:
        path.symlink_to("nowhere")
    expected = {"large": f"the limit is {MOST_BYTES:,}", "dangling": "cannot be read: No such file"}
    with pytest.raises(UserError, match=expected.get(kind, f"cannot be read: it is a {kind}, not a file")):
        read_mapping(path)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where long texts are kept; nothing of them is remembered in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(reading, "_parse", reading._parse.__wrapped__)
    monkeypatch.setattr(reading, "LONG", 1000)
    return tmp_path / "distillery" / "yaml"


@pytest.fixture
def parsed(monkeypatch):
    """The texts that were parsed."""
    texts, parse = [], reading._parse_now
    monkeypatch.setattr(reading, "_parse_now", lambda text, joins: [texts.append(text), parse(text, joins)][1])
    return texts


def long(last="1"):
    values = "['010', ~, true, 1.5, -3, 0.1, 1.0e+22, x: y, \"\\u00e9\\n\"]"
    lines = "".join(f"  k{number}: {values}\n" for number in range(20))
    return f"a:\n{lines}b: &b {{c: {last}}}\nd: *b\ne: {{<<: *b, f: g}}\n"


def test_a_long_text_is_parsed_once_for_all_processes(kept, parsed):
    first = parse_yaml(long(), "f")
    assert parse_yaml(long(), "f") == first == reading._parse_now(long(), False)
    assert repr(parse_yaml(long(), "f")) == repr(first)  # 1 is no 1.0 and no true
    assert len(parsed) == 2
    assert [path.stat().st_size > 1000 for path in kept.iterdir()] == [True]


def test_a_changed_text_is_never_taken_for_the_one_that_is_kept(kept, parsed):
    parse_yaml(long(), "f")
    for last in ("2", "1.0", "'1'"):
        assert parse_yaml(long(last), "f")["b"] == reading._parse_now(long(last), False)["b"]
    with pytest.raises(UserError, match="occurs twice"):
        parse_yaml(long("1, c: 2"), "f")
    with pytest.raises(UserError, match="occurs twice"):
        parse_yaml(long("1, c: 2"), "f")
    parse_yaml(long(), "f", joins=True)
    assert parsed.count(long()) == 2


@pytest.mark.parametrize("damage", ["cut", "edited", "another's", "empty", "no text", "a folder"])
def test_what_is_kept_and_damaged_or_of_another_text_is_not_used(kept, damage):
    right = parse_yaml(long(), "f")
    (path,) = kept.iterdir()
    text = path.read_text()
    if damage == "another's":
        parse_yaml(long("2"), "f")
        (other,) = set(kept.iterdir()) - {path}
        shutil.copy(other, path)
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        new = {"cut": text[:-100], "edited": text.replace("1.5", "2.5", 1), "empty": "", "no text": ""}[damage]
        path.write_bytes(b"\xff\xfe" if damage == "no text" else new.encode())
    assert parse_yaml(long(), "f") == right


def test_another_reader_does_not_use_what_is_kept(kept, parsed, monkeypatch):
    parse_yaml(long(), "f")
    monkeypatch.setattr(reading.yaml, "__version__", "0")
    parse_yaml(long(), "f")
    other = kept / "reader.py"
    other.write_text("# another release")
    monkeypatch.setattr(reading, "__file__", str(other))
    parse_yaml(long(), "f")
    assert len(parsed) == 3


def test_only_the_newest_long_texts_are_kept_and_without_a_place_it_works_too(kept):
    for number in range(MOST_KEPT + 3):
        parse_yaml(long(str(number)), "f")
    assert len(list(kept.iterdir())) == MOST_KEPT
    shutil.rmtree(kept)
    kept.write_text("no folder")
    assert parse_yaml(long(), "f")["d"] == {"c": 1}
