"""Four readers of HTTP as endpoints of a little node: h11, Node's llhttp, the same lenient, nginx."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.little_node import LittleNode, Pod

_HERE = Path(__file__).parent
_UNDERSCORE = re.compile(r'invalid header line: "[!-~]*[^-:0-9A-Za-z][!-~]*:')


@dataclass(frozen=True, slots=True)
class Event:
    """What a server wrote down; see parser_server.py. lines: names in lower case."""

    server: str
    wire: int
    what: str
    method: str = ""
    target: str = ""
    lines: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    trailers: int = 0
    error: str = ""


class Parsers:
    """The servers of one pod, by name, and what they have seen."""

    def __init__(self, node: LittleNode, pod: Pod, root: Path) -> None:
        self.node, self.pod, self.root = node, pod, root
        self.ports: dict[str, int] = {}
        self._read: dict[Path, int] = {}
        self._start("h11", [sys.executable, "-m", "tests.support.parser_server", "h11"])
        if shutil.which("node"):
            script = str(_HERE / "parser_server.js")
            self._start("llhttp", ["node", script])
            self._start("lenient", ["node", script], "lenient")
        if shutil.which("nginx"):
            self._nginx()
        for name, port in self.ports.items():
            node.await_port(pod.ns, pod.ip4, port)
            number = port - 9000
            node.cluster(number, node.endpoint(number, pod, port=port))
            node.route(name, number, (1, number))
        node.bump()

    def _port(self, name: str) -> int:
        port = self.ports[name] = 9101 + len(self.ports)  # below are those of Traps.serve
        return port

    def _log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def _spawn(self, command: list[str], log: str) -> None:
        with (self.root / f"{log}.out").open("wb") as out:
            self.node.spawn(self.pod, ["sh", "-c", f'exec "$@" >{out.name} 2>&1', "sh", *command])

    def _start(self, name: str, command: list[str], *more: str) -> None:
        self._spawn([*command, str(self._port(name)), str(self._log(name)), *more], name)

    def _nginx(self) -> None:
        port, behind = self._port("nginx"), self.root / "scgi"
        command = [sys.executable, "-m", "tests.support.parser_server", "scgi", str(behind), str(self._log("nginx"))]
        self._spawn(command, "scgi")
        for name in ("body", "scgi-temp", "proxy", "fastcgi", "uwsgi"):
            (self.root / name).mkdir()
        config = self.root / "nginx.conf"
        config.write_text(f"""
daemon off; master_process off; pid {self.root}/nginx.pid; error_log {self.root}/nginx-error.log info;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {self.root}/body; scgi_temp_path {self.root}/scgi-temp; proxy_temp_path {self.root}/proxy;
  fastcgi_temp_path {self.root}/fastcgi; uwsgi_temp_path {self.root}/uwsgi;
  keepalive_requests 1000000; client_max_body_size 0;
  server {{
    listen {port} backlog=512;
    location / {{
      scgi_pass unix:{behind}; scgi_param REQUEST_METHOD $request_method; scgi_param REQUEST_URI $request_uri;
      scgi_param CONTENT_LENGTH $content_length; scgi_param WIRE $remote_port;
    }}
    location ~ /early {{ add_header X-Seen "$request_method $request_uri early"; return 200 "early\\n"; }}
  }}
}}
""")
        for _ in range(200):
            if behind.exists():
                break
            time.sleep(0.05)
        self._spawn(["nginx", "-c", str(config), "-p", str(self.root)], "nginx")

    def events(self) -> list[Event]:
        """What was written down since the last call, server by server, in order. nginx's complaints are bad events."""
        found = []
        for name in self.ports:
            found += [self._event(name, json.loads(text)) for text in self._new(self._log(name))]
        for text in self._new(self.root / "nginx-error.log"):
            # not to the point: it does not serve TRACE, and leaves names with an underscore out
            if "client sent" in text and "sent TRACE" not in text and not _UNDERSCORE.search(text):
                found.append(Event("nginx", 0, "bad", error=text))
        return found

    def _new(self, path: Path) -> list[str]:
        """Whole lines behind those that were read before."""
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(data)
        return data.decode(errors="replace").split("\n")[:-1]

    @staticmethod
    def _event(server: str, data: dict[str, Any]) -> Event:
        return Event(
            server, data["wire"], data["what"], data.get("method", ""), data.get("target", ""),
            tuple((name.lower(), value) for name, value in data.get("lines", ())),
            data.get("body", "").encode("latin-1"), data.get("trailers", 0), data.get("error", ""),
        )  # fmt: skip
