"""Requests over one keep-alive connection, run inside a workload: `python keepalive_client.py ORDER.json`.

Input: {"host": IP, "port": N, "requests": [{"send": latin-1 text or ["part", ...], "pause": s}], "same": bool}
Output: a JSON list of {"status", "headers", "body"} (or {"error"}), one for each response.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any


def read_response(stream: Any, method: str) -> dict[str, Any]:
    line = stream.readline()
    if not line:
        return {"error": "closed"}
    status = int(line.split()[1])
    headers: dict[str, str] = {}
    while (text := stream.readline()) not in (b"\r\n", b""):
        name, _, value = text.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if status < 200:
        return read_response(stream, method)
    body = b""
    if method == "HEAD" or status in (204, 304):
        pass
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(stream.readline().split(b";")[0], 16):
            body += stream.read(size)
            stream.readline()
        while stream.readline() not in (b"\r\n", b""):
            pass
    elif "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
    else:
        body = stream.read()
    return {"status": status, "headers": headers, "body": body.decode("latin-1")}


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    answers: list[dict[str, Any]] = []
    with socket.create_connection((order["host"], order["port"]), 10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(order.get("timeout", 20))
        stream = sock.makefile("rb")
        try:
            for request in order["requests"]:
                parts = request["send"] if isinstance(request["send"], list) else [request["send"]]
                for i, part in enumerate(parts):
                    if i:
                        time.sleep(request.get("pause", 0.01))
                    sock.sendall(part.encode("latin-1"))
                for _ in range(request.get("answers", 1)):
                    answers.append(read_response(stream, parts[0].split()[0]))
        except (OSError, ValueError) as error:
            answers.append({"error": repr(error)})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
