"""page_server.py: what the loopback address serves, and to whom."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest
from conftest import ROOT, environment

from capsnet import flags, page_server
from capsnet.page_server import PageServer, open_server

FILES = {"index.html": b"<p>page</p>", "main.js": b"1", "model.json": b"{}"}


@pytest.fixture(scope="module")
def server():
    with PageServer(FILES, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    """Status, headers and body; the path goes out as it is."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def test_it_is_at_the_loopback_address_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    with urllib.request.urlopen(server.url) as response:
        assert response.read() == FILES["index.html"]


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/", "text/html; charset=utf-8", b"<p>page</p>"),
        ("/index.html", "text/html; charset=utf-8", b"<p>page</p>"),
        ("/main.js", "text/javascript; charset=utf-8", b"1"),
        ("/model.json?x=1", "application/json", b"{}"),
    ],
)
def test_its_files_have_their_types(server, path, kind, content):
    status, headers, body = ask(server, path)
    assert (status, headers["Content-Type"], body) == (200, kind, content)
    status, headers, body = ask(server, path, "HEAD")
    assert (status, headers["Content-Type"], body) == (200, kind, b"")
    assert headers["Content-Length"] == str(len(content))


@pytest.mark.parametrize("path", ["/capsulenet.py", "/explore/../main.js", "main.js"])
def test_there_is_nothing_else(server, path):
    status, headers, body = ask(server, path)
    assert status == 404 and b"Traceback" not in body
    assert "nosniff" in headers["X-Content-Type-Options"]


@pytest.mark.parametrize(
    "host",
    ["example.org", "example.org:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}"],
)
def test_another_name_for_this_address_is_misdirected(server, host):
    """A page elsewhere cannot read the drawings' page under a name of its own."""
    host = host.format(port=server.server_address[1])
    status, _, body = ask(server, "/", Host=host)
    assert status == 421 and b"page" not in body


def test_the_host_has_to_be_said_once(server):
    name = f"127.0.0.1:{server.server_address[1]}"
    for hosts in ([], [name, name], [name, "example.org"]):
        with socket.create_connection(server.server_address, timeout=10) as connection:
            lines = [f"Host: {host}" for host in hosts]
            request = "\r\n".join(
                ["GET / HTTP/1.1", *lines, "Connection: close", "", ""]
            )
            connection.sendall(request.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 421 ")
    assert ask(server, "/", Host=name.replace("127.0.0.1", "localhost"))[0] == 200


def test_browsers_are_told_to_ask_nobody_else(server):
    _, headers, _ = ask(server, "/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    # as the page says itself, where another host serves it, as far as a page can
    own, _, framing = policy.rpartition("; ")
    assert framing == "frame-ancestors 'none'"
    assert f'content="{own}"' in (ROOT / "explore" / "index.html").read_text()


def test_a_busy_port_leads_to_the_next_one(monkeypatch):
    with PageServer(FILES, 0) as busy:
        port = busy.server_address[1]
        monkeypatch.setattr(page_server, "FIRST_PORT", port)
        monkeypatch.setattr(page_server, "LAST_PORT", port + 20)
        with open_server(FILES) as server:
            assert port < server.server_address[1] <= port + 20
        monkeypatch.setattr(page_server, "LAST_PORT", port)
        with pytest.raises(OSError, match="in use"):
            open_server(FILES)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT of POSIX")
def test_explore_serves_until_ctrl_c(mnist, tmp_path):
    command = [sys.executable, "-u", ROOT / "capsulenet.py", "--explore"]
    process = subprocess.Popen(
        [*command, "-w", ROOT / flags.PRETRAINED],
        cwd=tmp_path,
        env=environment() | {"BROWSER": "true"},  # a program that opens nothing
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = next(line for line in process.stdout if line.startswith("Page: "))
        with urllib.request.urlopen(line.split()[1], timeout=60) as response:
            assert b"<h1>" in response.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (out, err, process.returncode) == ("Ended.\n", "", 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "is_said"),
    [(ConnectionResetError, False), (BrokenPipeError, False), (ValueError, True)],
)
def test_a_browser_that_goes_away_is_no_error(server, capsys, error, is_said):
    try:
        raise error
    except error:
        server.handle_error(None, ("127.0.0.1", 1))
    assert bool(capsys.readouterr().err) == is_said
