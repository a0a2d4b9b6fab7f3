"""Sealed files: what is read is what was written."""

import json

import pytest

from distillery.errors import UserError
from distillery.results import read_json, record_sha256, write_sealed

CONTENT = {"top1": 93.25, "name": "café", "none": None, "list": [1, 0.1], "sessions": [{"seconds": 3.5}]}


def test_every_flipped_byte_of_a_sealed_file_is_found(tmp_path):
    path = tmp_path / "metrics.json"
    write_sealed(path, CONTENT)
    assert {key: value for key, value in read_json(path, "it").items() if key != "seal"} == CONTENT
    whole = path.read_bytes()
    name = whole.index(b'"seal"')
    for position in range(len(whole)):
        if name < position <= name + 5:
            continue  # without its name, a seal is none
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(UserError):
            read_json(path, "it")


def test_files_of_the_first_releases_have_no_seal_and_are_read(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(CONTENT))
    assert read_json(tmp_path / "metrics.json", "it") == CONTENT


def test_a_record_is_the_same_whenever_it_is_made_again():
    assert record_sha256(CONTENT) == record_sha256(CONTENT | {"sessions": [], "provenance": {}, "seal": "0"})
    assert record_sha256(CONTENT) != record_sha256(CONTENT | {"top1": 93.26})
