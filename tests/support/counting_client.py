"""Requests over one keep-alive connection, and how many bytes went either way: `python counting_client.py ORDER.json`.

Input: {"host": IP, "port": N, "requests": [latin-1 text, ...], "leave": bytes of the last response to read, or null}
Output: {"statuses": [...], "sent": [...], "received": [...], "seconds": [...]}, one item for each request. Responses
must have a Content-Length.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

order = json.loads(Path(sys.argv[1]).read_text())
out: dict[str, list[float]] = {"statuses": [], "sent": [], "received": [], "seconds": []}
with socket.create_connection((order["host"], order["port"]), timeout=20) as connection:
    for number, text in enumerate(order["requests"]):
        data = text.encode("latin-1")
        start = time.monotonic()
        connection.sendall(data)
        got, whole = b"", -1
        last = number == len(order["requests"]) - 1
        while whole < 0 or len(got) < whole:
            if last and order.get("leave") and len(got) >= order["leave"]:
                break
            more = connection.recv(1 << 16)
            if not more:
                sys.exit(f"closed after {len(got)} bytes of response {number}")
            got += more
            if whole < 0 and b"\r\n\r\n" in got:
                head = got.partition(b"\r\n\r\n")[0]
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                whole = len(head) + 4 + int(lengths[0].split(b":")[1])
        out["seconds"].append(time.monotonic() - start)
        out["statuses"].append(int(got.split()[1]))
        out["sent"].append(len(data))
        out["received"].append(len(got))
print(json.dumps(out))
