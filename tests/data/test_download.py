"""Downloads against a real server on this machine: whole or not at all, checked, and continued where they broke off."""

import hashlib
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from distillery.data import download as module
from distillery.data.download import download
from distillery.data.fetch import fetch_raw
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset, Download

CONTENT = bytes(range(256)) * 2000
CHECKSUM = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server:
    """Serves CONTENT; ``breaks`` says after how many bytes each of the first answers ends."""

    def __init__(self):
        self.breaks, self.asked, self.ranges, self.content, self.code = [], [], True, CONTENT, 200
        self.length = 0  # what the header says; 0: the truth, None: nothing
        self.endless, self.sent = False, 0
        self.grain = 1  # ranges begin at multiples of it
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.headers.get("Range"))
                begin = 0
                if server.ranges and self.headers.get("Range"):
                    begin = (
                        int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                        // server.grain
                        * server.grain
                    )
                if server.code != 200 or begin >= len(server.content):
                    self.send_error(416 if server.code == 200 else server.code)
                    return
                body = server.content[begin:]
                self.send_response(206 if begin else 200)
                if begin:
                    self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
                if server.length is not None:
                    self.send_header("Content-Length", str(len(body) if server.length == 0 else server.length))
                self.end_headers()
                with suppress(OSError):  # whoever asked has gone away
                    while server.endless and server.sent < 2**27:
                        server.sent += self.wfile.write(bytes(65_536))
                self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/files/birds.tgz?download=1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "birds" / "birds.tgz"


def names(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_a_download_appears_whole(server, target):
    download("birds", server.url, target, CHECKSUM)
    assert target.read_bytes() == CONTENT
    assert names(target) == ["birds.tgz"]
    assert server.asked == [None]


def test_broken_connections_are_taken_up_where_they_broke(server, target):
    server.breaks = [1000, 2000, 300_000]
    download("birds", server.url, target, CHECKSUM)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=3000-", "bytes=303000-"]


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (CONTENT[:400_000], ["bytes=400000-"]),
        (CONTENT, [f"bytes={len(CONTENT)}-"]),  # complete, but not checked
        (b"an older version", ["bytes=16-", None]),
    ],
    ids=["part", "whole", "of another version"],
)
def test_what_an_earlier_call_got_is_not_fetched_again_where_it_fits(server, target, there, asked):
    target.parent.mkdir(parents=True)
    (target.parent / ".birds.tgz.partial").write_bytes(there)
    download("birds", server.url, target, CHECKSUM)
    assert target.read_bytes() == CONTENT
    assert server.asked == asked


def test_a_server_without_ranges_sends_all_again(server, target):
    server.ranges, server.breaks = False, [1000]
    download("birds", server.url, target, CHECKSUM)
    assert target.read_bytes() == CONTENT


def test_a_server_that_sends_another_range_than_asked_is_refused(server, target):
    server.grain, server.breaks = 512, [1000]
    download("birds", server.url, target, CHECKSUM)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", None]


def test_another_file_than_expected_is_refused_and_not_kept(server, target):
    server.content = b"<html>moved</html>"
    with pytest.raises(
        UserError, match=r"birds\.tgz\S*: what came does not have the checksum md5:\w+; look at the addr"
    ):
        download("birds", server.url, target, CHECKSUM)
    assert names(target) == []


@pytest.mark.parametrize("code", [404, 500])
def test_a_server_that_refuses_is_said_with_what_to_do_by_hand(server, target, code):
    server.code = code
    with pytest.raises(
        UserError, match=rf"cannot be downloaded: the server says {code} .*; run `distillery download b"
    ) as e:
        download("birds", server.url, target, CHECKSUM)
    assert str(e.value).endswith(f"or put the file at {target} by hand")
    assert "\n" not in str(e.value)


def test_no_network_is_said_with_what_to_do_by_hand(target):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/birds.tgz"
        with pytest.raises(UserError, match=r"cannot be downloaded: .*refused.*or put the file at .* by hand"):
            download("birds", url, target, CHECKSUM)


def test_a_connection_that_breaks_without_end_gives_up_and_keeps_what_came(server, target):
    server.breaks = [50_000] + [0] * 20
    with pytest.raises(UserError, match=r"the connection ended after 50,000 of 512,000 bytes"):
        download("birds", server.url, target, CHECKSUM)
    assert (target.parent / ".birds.tgz.partial").stat().st_size == 50_000
    assert len(server.asked) == module._ATTEMPTS


def test_two_at_once_fetch_it_once(server, target):
    threads = [threading.Thread(target=download, args=("birds", server.url, target, CHECKSUM)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert target.read_bytes() == CONTENT
    assert names(target) == ["birds.tgz"]
    assert len(server.asked) == 1


def test_preparing_fetches_into_an_absent_or_empty_folder_only(server, target):
    dataset = Dataset(path=str(target.parent), download=Download(url=server.url, checksum=CHECKSUM))
    fetch_raw("birds", dataset)
    assert target.read_bytes() == CONTENT
    fetch_raw("birds", dataset)
    assert len(server.asked) == 1
    target.unlink()
    (target.parent / "images").mkdir()
    fetch_raw("birds", dataset)
    assert names(target) == ["images"]


def test_a_local_archive_that_is_not_the_official_one_is_refused(server, target):
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT[:-1])
    dataset = Dataset(path=str(target.parent), download=Download(url=server.url, checksum=CHECKSUM))
    with pytest.raises(UserError, match=r"birds\.tgz: is not the official file, whose checksum is md5:"):
        fetch_raw("birds", dataset)
    assert target.exists()


def test_a_server_that_sends_without_end_is_not_followed(server, target):
    server.endless, server.length = True, None
    with pytest.raises(UserError, match="does not say how large the file is; write `size:` of 'birds'"):
        download("birds", server.url, target, CHECKSUM)
    with pytest.raises(UserError, match="sends more than the 512,000 bytes"):
        download("birds", server.url, target, CHECKSUM, len(CONTENT))
    assert server.sent < 2**26
    assert names(target) == []


def test_a_size_is_compared_before_anything_is_taken(server, target):
    with pytest.raises(UserError, match=r"has 512,000 bytes, but birds\.download\.size in datasets\.yaml expects 7"):
        download("birds", server.url, target, CHECKSUM, 7)
    server.length = 2**60
    with pytest.raises(UserError, match=r"has 1,152,921,504,606,846,976 bytes, but .* has room for"):
        download("birds", server.url, target, CHECKSUM)
    assert names(target) == []
    server.length = None
    download("birds", server.url, target, CHECKSUM, len(CONTENT))
    assert target.read_bytes() == CONTENT
