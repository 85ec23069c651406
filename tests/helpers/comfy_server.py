"""A real ComfyUI server with this pack in it, and a client that runs graphs there over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comfy_host import SCRIPTS, find_host
from commands import ROOT

PACK = "any-folder-name"  # the pack must not depend on what its folder is called
FOLDERS = ("checkpoints", "controlnet", "diffusion_models", "loras", "text_encoders", "vae")
Graph = Mapping[str, Mapping[str, Any]]


class GraphError(AssertionError):
    """A graph that failed: at validation or while running."""


class Server:
    """ComfyUI, answering on a port of its own.

    Attributes:
        base: Its folder, with models, input and output in it.
    """

    def __init__(self, base: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.base = base
        self._port = port
        self._process = process

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return self._url("/")

    def get(self, route: str) -> Any:
        """What a route answers, as JSON."""
        with urllib.request.urlopen(self._url(route), timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, route: str, body: Any = None) -> Any:
        """What a route answers to JSON; raises GraphError with what it says where it refuses."""
        request = urllib.request.Request(
            self._url(route),
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise GraphError(error.read().decode()) from None
        return json.loads(text) if text else None

    def _url(self, route: str) -> str:
        return f"http://127.0.0.1:{self._port}{route}"

    def log(self) -> str:
        """What it has printed."""
        return (self.base / "log.txt").read_text()

    def start(self, graph: Graph, client: str = "") -> str:
        """Queue a graph; return its number."""
        body = {"prompt": graph, "client_id": client or uuid.uuid4().hex}
        return self.post("/prompt", body)["prompt_id"]

    def result(self, number: str, timeout: float = 300) -> dict[str, Any]:
        """Wait for a graph; return its history. Raises GraphError with the node's own message."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if found := self.get(f"/history/{number}").get(number):
                break
            assert self._process.poll() is None, "ComfyUI is gone"
            time.sleep(0.02)
        else:
            raise AssertionError("the graph did not end")
        for kind, message in found["status"]["messages"]:
            if kind == "execution_error":
                raise GraphError(f"{message['node_type']}: {message['exception_message'].strip()}")
            if kind == "execution_interrupted":
                raise GraphError("interrupted")
        return found

    def run(self, graph: Graph) -> dict[str, Any]:
        """Run a graph; return the outputs by node."""
        return self.result(self.start(graph))["outputs"]

    def executed(self, graph: Graph) -> set[str]:
        """Run a graph; return the nodes that did not come out of the cache."""
        messages = dict(self.result(self.start(graph))["status"]["messages"])
        return set(graph) - set(messages["execution_cached"]["nodes"])

    @contextlib.contextmanager
    def listening(self, client: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """What the server tells a client of its own accord: kinds of message, and their content."""
        key = base64.b64encode(os.urandom(16)).decode()
        headers = {
            "Host": f"127.0.0.1:{self._port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
        }
        lines = [f"GET /ws?clientId={client} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            with connection.makefile("rb") as stream:
                while stream.readline().strip():
                    pass
                yield _messages(stream)


def _messages(stream: Any) -> Iterator[tuple[str, Any]]:
    """Of a websocket's frames (RFC 6455, a server's are not masked) the texts of ComfyUI's JSON."""
    while head := stream.read(2):
        size = head[1]
        if size >= 126:
            size = struct.unpack(
                *((">H", stream.read(2)) if size == 126 else (">Q", stream.read(8)))
            )[0]
        content = stream.read(size)
        if head[0] & 15 == 1:
            message = json.loads(content)
            yield message["type"], message["data"]
        elif head[0] & 15 == 2 and content[:4] == b"\0\0\0\3":  # ComfyUI's number for a text
            start = 8 + struct.unpack(">I", content[4:8])[0]
            yield "text", {"node": content[8:start].decode(), "text": content[start:].decode()}


@contextlib.contextmanager
def running(base: Path) -> Iterator[Server]:
    """A server whose models, output and custom nodes are in a folder: this pack, and test nodes."""
    tree, python = find_host()
    for folder in FOLDERS:
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
    shutil.copy(SCRIPTS / "graph_nodes.py", base / "custom_nodes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = base / "log.txt"
    options = {
        "--port": str(port),
        "--base-directory": str(base),
        "--database-url": "sqlite:///:memory:",
    }
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [
                *(str(python), "main.py", "--cpu", "--disable-api-nodes"),
                *(part for option in options.items() for part in option),
            ],
            cwd=tree,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        server = Server(base, port, process)
        try:
            _wait(server, process, log)
            yield server
        finally:
            process.terminate()


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        with contextlib.suppress(OSError):
            server.get("/system_stats")
            return
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.1)
    raise AssertionError(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")
