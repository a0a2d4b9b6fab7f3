"""YAML says what it looks like, or is refused in one line; no file of any kind is waited for or fills the memory."""

import os
import socket
import time

import pytest

from distillery.errors import UserError
from distillery.experiment.reading import MOST_BYTES, parse_yaml, read_mapping

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
