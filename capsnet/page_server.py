"""Serves the page to draw on to the browser of this machine, and to nothing else."""

import http.server
import os
import socketserver
import sys
import threading
import webbrowser
from pathlib import PurePath

from capsnet.explore import TYPES
from capsnet.interrupts import Interrupted

ADDRESS = "127.0.0.1"
FIRST_PORT, LAST_PORT = 8000, 8099
HEADERS = {
    # No address but our own is ever asked for anything.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # The next page at this port may be that of another model.
    "Cache-Control": "no-store",
}


class PageServer(socketserver.ThreadingTCPServer):
    """Answers GET and HEAD of a fixed list of files, from memory.

    Args:
        files: The content of each, by name.
        port: Where it listens on the loopback address.

    Raises:
        OSError: If the port is busy.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # on Windows two servers would share it

    def __init__(self, files: dict[str, bytes], port: int):
        self.files = {f"/{name}": content for name, content in files.items()}
        super().__init__((ADDRESS, port), _Handler)
        port = self.server_address[1]
        self.hosts = [f"{ADDRESS}:{port}", f"localhost:{port}"]
        self.url = f"http://{ADDRESS}:{port}/"

    def handle_error(self, request, client_address):
        """Says nothing of a browser that went away: a closed tab is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds until a silent connection ends

    def do_GET(self):
        path = self.path.partition("?")[0]
        path = "/index.html" if path == "/" else path
        # A page elsewhere may have a name of its own that leads to this address.
        if self.headers.get_all("Host", []) not in [[h] for h in self.server.hosts]:
            self.send_error(421)
        elif path not in self.server.files:
            self.send_error(404)
        else:
            content = self.server.files[path]
            self.send_response(200)
            self.send_header("Content-Type", TYPES[PurePath(path).suffix])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815, the name that http.server asks for

    def end_headers(self):
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self):
        return "capsnet"

    def log_message(self, *arguments):
        """Says nothing: the terminal is for the address."""


def open_server(files: dict[str, bytes]) -> PageServer:
    """A server at the first port that is free.

    Raises:
        OSError: If none is.
    """
    for port in range(FIRST_PORT, LAST_PORT):
        try:
            return PageServer(files, port)
        except OSError:
            continue
    return PageServer(files, LAST_PORT)


def serve(files: dict[str, bytes]) -> None:
    """Serves the page and opens it in the browser, until Ctrl-C.

    Args:
        files: Of `explore.build_page`.

    Raises:
        OSError: If no port is free.
    """
    with open_server(files) as server:
        print(f"Page: {server.url} (Ctrl-C ends it)", flush=True)
        # A browser of the terminal would not return until it is left.
        threading.Thread(
            target=webbrowser.open, args=(server.url,), daemon=True
        ).start()
        try:
            server.serve_forever()
        except Interrupted:
            print("Ended.")
