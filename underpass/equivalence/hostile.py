"""Changes of an ordinary request that two readers could read differently (pure): classes of published weaknesses.

Nothing here says what the right reading is: Envoy does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class Draft:
    """A request in parts, as text of ISO 8859-1: what stands here is what goes on the wire."""

    method: str = "GET"
    path: str = "/"
    query: str = ""
    host: str = "a"
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""

    @property
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def head(self) -> bytes:
        """The head, with a Content-Length when there is a body."""
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.body:
            lines.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def wire(self) -> bytes:
        """Head and body."""
        return self.head() + self.body.encode("latin-1", "replace")

    def with_header(self, name: str, *values: str) -> Draft:
        """Instead of any header of that name, one for each value."""
        rest = tuple(item for item in self.headers if item[0].lower() != name.lower())
        return replace(self, headers=(*rest, *((name, value) for value in values)))


_PATHS: Final = {
    "dot segment": "{d}/./{l}",
    "double dot": "{d}/x/../{l}",
    "double dot above the root": "/../..{p}",
    "encoded dots": "{d}/x/%2e%2e/{l}",
    "double slash": "{d}//{l}",
    "double slash first": "/{p}",
    "encoded slash": "{d}%2f{l}",
    "encoded slash upper": "{d}%2F{l}",
    "backslash": "{d}\\{l}",
    "encoded backslash": "{d}%5c{l}",
    "parameter": "{p};a=b",
    "dots with a parameter": "{d}/x/..;/{l}",
    "dot with a parameter": "{d}/.;/{l}",
    "fragment": "{p}#f",
    "encoded NUL": "{p}%00",
    "encoded letter": "{p}%41",
    "encoded blank": "{p}%20",
    "bad encoding": "{p}%zz",
    "half an encoding": "{p}%4",
    "high byte": "{p}\xe9",
    "tab": "{p}\t",
    "pipe": "{p}|",
    "quote": '{p}"',
    "angle": "{p}<",
    "brace": "{p}{{",
    "caret": "{p}^",
    "tick": "{p}`",
    "bracket": "{p}[",
    "star": "{p}*",
    "plus": "{p}+",
    "colon": "{p}:",
    "at": "{p}@",
    "tilde": "{p}~",
    "dollar": "{p}$",
    "comma": "{p},",
    "bang": "{p}!",
    "apostrophe": "{p}'",
    "parenthesis": "{p}(",
    "ampersand": "{p}&",
    "equals": "{p}=",
    "dots at the end": "{d}/..",
    "dot at the end": "{d}/.",
    "three dots": "{d}/...",
    "upper case": "{u}",
}

_QUERIES: Final = {
    "dots in the query": "/../x",
    "fragment in the query": "a#b",
    "encoded in the query": "%2e%2e%2f%00%zz",
    "question marks": "??",
    "slashes in the query": "//x//",
    "high byte in the query": "\xe9",
    "quote in the query": '"',
    "brace in the query": "{}|\\^`[]",
}

_HOSTS: Final = {
    "host list": "{h},b",
    "host with blank": "{h} b",
    "host with userinfo": "u@{h}",
    "host with slash": "{h}/x",
    "host with percent": "{h}%2e",
    "host star": "*",
    "host with port 0": "{h}:0",
    "host with an empty port": "{h}:",
    "host with letters as port": "{h}:8x",
    "host with two ports": "{h}:80:80",
    "host with a large port": "{h}:65536",
    "host with a long port": "{h}:100000",
    "host, a trailing dot": "{h}.",
    "host, two trailing dots": "{h}..",
    "host, a leading dot": ".{h}",
    "host upper": "{U}",
    "host empty": "",
    "host bracket": "[::1]",
    "host bracket open": "[::1",
    "host with underscore": "_{h}",
    "host very long": "a" * 91,
    "host over the limit": "a" * 92,
    "host of 300": "a" * 300,
    "host high byte": "{h}\xe9",
    "host with question mark": "{h}?x",
    "host with quote": '"{h}"',
}

_LINES: Final = {
    "blank before the colon": "X : a",
    "no colon": "Xa",
    "empty name": ": a",
    "name with high byte": "X\xe9: a",
    "name with NUL": "X\0: a",
    "name with a tab": "X\t: a",
    "name with parenthesis": "X(: a",
    "underscore": "x_user: a",
    "name with every token sign": "!#$%&'*+-.^_`|~9: a",
    "folded": "X: a\r\n b",
    "folded with a tab": "X: a\r\n\tb",
    "leading blank": " X: a",
    "bare CR": "X: a\rb",
    "bare LF": "X: a\nY: b",
    "NUL in a value": "X: a\0b",
    "tab in a value": "X: a\tb",
    "tab before a value": "X:\ta",
    "blanks around a value": "X:   a  ",
    "no blank": "X:a",
    "empty value": "X:",
    "high byte in a value": "X: \xe9",
    "DEL in a value": "X: \x7f",
    "ESC in a value": "X: \x1b",
    "header twice": "X: a\r\nX: b",
    "second Host": "Host: b",
    "Content-Length twice": "Content-Length: 0\r\nContent-Length: 0",
    "Content-Length list": "Content-Length: 0, 0",
    "Content-Length +0": "Content-Length: +0",
    "Content-Length empty": "Content-Length:",
    "Content-Length hex": "Content-Length: 0x0",
    "Content-Length negative": "Content-Length: -0",
    "Content-Length zeros": "Content-Length: 000",
    "Content-Length and chunks": "Content-Length: 0\r\nTransfer-Encoding: chunked",
    "chunks of nothing known": "Transfer-Encoding: xchunked",
    "chunked, identity": "Transfer-Encoding: chunked, identity",
    "identity": "Transfer-Encoding: identity",
    "chunked behind a tab": "Transfer-Encoding:\tchunked",
    "chunked with VT": "Transfer-Encoding: \x0bchunked",
    "upgrade to h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    "upgrade to websocket": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "upgrade without connection": "Upgrade: websocket",
    "connection names a header": "Connection: X-Auth\r\nX-Auth: a",
    "connection close": "Connection: close",
    "connection keep-alive": "Connection: Keep-Alive",
    "connection two": "Connection: keep-alive, close",
    "proxy-connection": "Proxy-Connection: keep-alive",
    "keep-alive": "Keep-Alive: timeout=5",
    "TE trailers": "TE: trailers",
    "TE other": "TE: gzip",
    "trailer": "Trailer: X",
    "expect": "Expect: 100-continue",
    "expect other": "Expect: x",
    "forwarded for": "X-Forwarded-For: 10.0.0.1",
    "forwarded proto": "X-Forwarded-Proto: https",
    "forwarded proto of nothing known": "X-Forwarded-Proto: gopher",
    "forwarded host": "X-Forwarded-Host: b",
    "forwarded port": "X-Forwarded-Port: 1",
    "forwarded": "Forwarded: for=10.0.0.1",
    "via": "Via: 1.1 x",
    "client certificate": "X-Forwarded-Client-Cert: By=a;URI=b",
    "request id": "X-Request-Id: mine",
    "request id of Envoy's form": "X-Request-Id: 8c3b4d2e-1111-4111-8111-111111111111",
    "original path": "X-Envoy-Original-Path: /admin",
    "internal": "X-Envoy-Internal: true",
    "attempt count": "X-Envoy-Attempt-Count: 7",
    "retry on": "X-Envoy-Retry-On: 5xx",
    "max retries": "X-Envoy-Max-Retries: 9",
    "timeout": "X-Envoy-Upstream-Rq-Timeout-Ms: 1000",
    "timeout per try": "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms: 900",
    "alternative statistics": "X-Envoy-Upstream-Alt-Stat-Name: x",
    "retriable": "X-Envoy-Retriable-Status-Codes: 200",
    "hedge": "X-Envoy-Hedge-On-Per-Try-Timeout: true",
    "expected timeout": "X-Envoy-Expected-Rq-Timeout-Ms: 5",
    "decorator": "X-Envoy-Decorator-Operation: x",
    "peer": "X-Envoy-Peer-Metadata: x",
    "trace": "X-Client-Trace-Id: x",
    "downstream cluster": "X-Envoy-Downstream-Service-Cluster: x",
    "external": "X-Envoy-External-Address: 1.2.3.4",
    "ip tags": "X-Envoy-Ip-Tags: x",
    "force trace": "X-Envoy-Force-Trace: true",
    "method override": "X-HTTP-Method-Override: DELETE",
    "original url": "X-Original-Url: /admin",
    "rewrite url": "X-Rewrite-Url: /admin",
    "grpc timeout": "Grpc-Timeout: 1S",
    "gRPC": "Content-Type: application/grpc",
    "CORS preflight": "Origin: http://x\r\nAccess-Control-Request-Method: PUT",
    "pseudo header": ":path: /x",
    "authority as a header": ":authority: b",
    "b3": "B3: 0",
    "traceparent": "Traceparent: 00-1-1-00",
    "fault by header": "X-Envoy-Fault-Abort-Request: 503",
    "delay by header": "X-Envoy-Fault-Delay-Request: 1",
    "sixty-three lines": "\r\n".join(f"X-{i}: a" for i in range(61)),
    "a hundred lines": "\r\n".join(f"X-{i}: a" for i in range(100)),
    "a long name": "x" * 64 + ": a",
    "a name over the limit": "x" * 65 + ": a",
    "a long value": "X: " + "v" * 3000,
    "a value over the limit": "X: " + "v" * 5000,
}

_FRAMES: Final = {
    "method in lower case": (b"{m} ", b"{l} "),
    "version 1.0": (b" HTTP/1.1", b" HTTP/1.0"),
    "version 1.2": (b" HTTP/1.1", b" HTTP/1.2"),
    "version 2.0": (b" HTTP/1.1", b" HTTP/2.0"),
    "version in lower case": (b" HTTP/1.1", b" http/1.1"),
    "no version": (b" HTTP/1.1", b""),
    "two blanks before the version": (b" HTTP/1.1", b"  HTTP/1.1"),
    "a blank behind the version": (b" HTTP/1.1", b" HTTP/1.1 "),
    "lines end with LF": (b"\r\n", b"\n"),
    "no Host": (b"\r\nHost:", b"\r\nX-Host:"),
    "Host in lower case": (b"\r\nHost:", b"\r\nhost:"),
    "Host in upper case": (b"\r\nHost:", b"\r\nHOST:"),
    "Host without a blank": (b"\r\nHost: ", b"\r\nHost:"),
    "Host behind two blanks": (b"\r\nHost: ", b"\r\nHost:  "),
}

_METHODS: Final = ("TRACE", "CONNECT", "PROPFIND", "PURGE", "BREW", "G\xe9T", "GET:", "PRI", "M-SEARCH", "QUERY")


def changes(draft: Draft) -> Iterator[tuple[str, bytes]]:
    """(what was done, the bytes) for every change of a request."""
    directory, _, last = draft.path.rpartition("/")
    parts = {"p": draft.path, "d": directory, "l": last or "x", "u": draft.path.upper()}
    for name, form in _PATHS.items():
        yield f"path: {name}", replace(draft, path=form.format(**parts)).wire()
    for name, query in _QUERIES.items():
        yield f"target: {name}", replace(draft, query=query).wire()
    for name, form in _HOSTS.items():
        yield name, replace(draft, host=form.format(h=draft.host, U=draft.host.upper())).wire()
    yield "absolute target", replace(draft, path=f"http://{draft.host}{draft.path}").wire()
    yield "absolute target, another host", replace(draft, path=f"http://other.example{draft.path}").wire()
    yield "target star", replace(draft, method="OPTIONS", path="*", query="").wire()
    yield "target without slash", replace(draft, path=draft.path[1:] or "x").wire()
    yield "target empty", replace(draft, path="", query="").wire()
    plain = draft.head()
    for name, lines in _LINES.items():
        data = _insert(plain, lines)
        yield f"line: {name}", data + draft.body.encode("latin-1", "replace")
    for name, (old, new) in _FRAMES.items():
        name_of = draft.method.encode("latin-1")
        before, after = old.replace(b"{m}", name_of), new.replace(b"{l}", name_of.lower())
        count = -1 if old == b"\r\n" else 1
        yield f"frame: {name}", draft.wire().replace(before, after, count)
    yield "frame: CR LF before the request", b"\r\n" + draft.wire()
    yield "frame: a blank before the request", b" " + draft.wire()
    for method in _METHODS:
        yield f"method {method}", replace(draft, method=method, body="").wire()
    for name, body in (("chunks", "1\r\nx\r\n0\r\n\r\n"), ("bad chunks", "1_0\r\nx\r\n0\r\n\r\n")):
        posted = replace(draft, method="POST", body="")
        yield name, _insert(posted.head(), "Transfer-Encoding: chunked") + body.encode()
    yield "body of a GET", replace(draft, body="hello").wire()


def _insert(head: bytes, lines: str) -> bytes:
    """The head with more lines at its end."""
    return head[:-2] + lines.encode("latin-1") + b"\r\n\r\n"
