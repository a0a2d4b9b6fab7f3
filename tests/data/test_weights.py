"""Weights by their address, from a real server on this machine: fetched once, checked, and one line otherwise."""

import functools
import hashlib
import io
import re
import shutil
import ssl
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from distillery.data import download as module
from distillery.data import weights
from distillery.data.weights import fetched
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.address import parse_address
from distillery.models import create_model
from distillery.results import read_json

SHA = "0123456789abcdef" * 4


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that is served; ``asked`` are the paths that were asked for."""
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for proxy in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    folder, asked = tmp_path / "site", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    http.folder, http.asked, http.url = folder, asked, f"http://127.0.0.1:{http.server_port}"
    yield http
    http.shutdown()
    http.server_close()


def put(site, name, content):
    (site.folder / name).write_bytes(content)
    return f"{site.url}/{name}#sha256={hashlib.sha256(content).hexdigest()}"


def network_bytes(seed=0, classes=3):
    torch.manual_seed(seed)
    file = io.BytesIO()
    torch.save(create_model("cifar_resnet8", classes).state_dict(), file)
    return file.getvalue()


def test_a_file_is_fetched_once_and_again_if_it_was_damaged(site, tmp_path, capsys):
    address = put(site, "net.pth", b"weights")
    path = fetched(address)
    assert path.startswith(str(tmp_path / "torch" / "hub" / "checkpoints" / "net-"))
    assert path.endswith(".pth")
    for _ in range(2):
        assert fetched(address) == path
    assert len(site.asked) == 1
    Path(path).write_bytes(b"weighty")
    assert fetched(address) == path
    assert Path(path).read_bytes() == b"weights"
    assert len(site.asked) == 2
    assert "damaged; fetching it again" in capsys.readouterr().out


def test_what_is_no_address_stays_as_it_is():
    for name in ("net.pth", "~/net.pth", "torchvision:DEFAULT", "timm:a1_in1k", "run:other/run"):
        assert fetched(name) == name


def test_other_bytes_are_refused_and_not_kept(site, tmp_path):
    address = put(site, "net.pth", b"weights")
    (site.folder / "net.pth").write_bytes(b"others")
    with pytest.raises(UserError, match=r"net\.pth: what came does not have the checksum sha256:\w+; look at the add"):
        fetched(address)
    assert not list((tmp_path / "torch").rglob("*.*"))


def test_too_large_a_file_is_refused_before_it_comes(site, monkeypatch):
    monkeypatch.setattr(weights, "LARGEST", 6)
    with pytest.raises(UserError, match=r"net\.pth: has 7 bytes; the limit is 6"):
        fetched(put(site, "net.pth", b"weights"))


def test_a_missing_file_says_where_to_put_it_by_hand(site):
    with pytest.raises(UserError, match=r"says 404 .*; run this command where .* put the file at .*torch/hub"):
        fetched(f"{site.url}/none.pth#sha256={SHA}")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
def test_https_is_fetched_from_a_server_that_is_trusted_only(site, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
    subprocess.run([*words.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    address = put(site, "net.pth", b"weights").replace("http://127.0.0.1", "https://localhost")
    with pytest.raises(UserError, match=r"cannot be downloaded: .*certificate"):
        fetched(address)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert Path(fetched(address)).read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "https://host/net.pth",
            "could be others tomorrow; get the checksum by `curl -L https://host/net.pth |",
        ),
        ("https://host/net.pth#sha256=12", "#sha256=12 is no checksum; get the checksum by"),
        (f"https://host/net.pth#md5={SHA}", "is no checksum"),
        (f"http://host/net.pth#sha256={SHA}", "only https:// is fetched (http:// from this machine alone)"),
        (f"ftp://host/net.pth#sha256={SHA}", "only https:// is fetched"),
        (f"s3://bucket/net.pth#sha256={SHA}", "only https:// is fetched"),
        (f"file:///net.pth#sha256={SHA}", "it is no address"),
        (f"https://me:secret@host/net.pth#sha256={SHA}", "does not belong into a file"),
        (f"https://#sha256={SHA}", "it is no address"),
        (f"https://[host/net.pth#sha256={SHA}", "it is no address"),
        (f"https://host/a net.pth#sha256={SHA}", "it is no address"),
    ],
)
def test_what_nothing_can_be_fetched_from_safely_is_refused(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_address(text)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a/net.v2.pth?download=1", f"net.v2-{SHA[:16]}.pth"),
        ("https://host/", f"weights-{SHA[:16]}"),
        ("https://host/%2e%2e%2f%2e%2e%2fnet.pth", f"net-{SHA[:16]}.pth"),
        ("https://host/.hidden", f"hidden-{SHA[:16]}"),
        (f"https://host/{'x' * 300}.safetensors", f"{'x' * 100}-{SHA[:16]}.safetensors"),
    ],
)
def test_a_fetched_file_has_a_plain_name_of_its_own(url, name):
    assert parse_address(f"{url}#sha256={SHA.upper()}").file_name == name


def test_a_run_imports_an_address_and_a_mirror_or_a_file_with_these_bytes_is_the_same(site, workplace):
    content = network_bytes()
    address = put(site, "net.pth", content)
    line = "{model: cifar_resnet8, weights: '%s', preprocess: {size: 8}}"
    workplace.edit("{model: cifar_resnet8, recipe: tiny}", line % address)
    digest = load_experiment(workplace.experiment).spec("small").digest
    folder = workplace.make("small")
    record = read_json(folder / "run.json", "it")
    assert record["weights_file"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["spec"]["weights"] == {"sha256": hashlib.sha256(content).hexdigest()}
    mirror = put(site, "mirror.pth", content)
    workplace.edit(address, mirror)
    assert load_experiment(workplace.experiment).spec("small").digest == digest
    (workplace.folder / "own.pth").write_bytes(content)
    workplace.edit(mirror, str(workplace.folder / "own.pth"))
    assert load_experiment(workplace.experiment).spec("small").digest == digest
    workplace.edit(str(workplace.folder / "own.pth"), put(site, "other.pth", network_bytes(1)))
    assert load_experiment(workplace.experiment).spec("small").digest != digest
