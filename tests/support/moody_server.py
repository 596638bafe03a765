"""An HTTP/1.1 server that answers well or badly, as a directory says: ``moody_server PORT DIRECTORY``.

``DIRECTORY/POD`` holds the status that the server of that pod answers with; without the file it is 200. The body is the
pod's name. A target that begins with /slow takes a while. One thread, connections are kept.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

SLOW_S = 0.2


def _status(mood: Path) -> str:
    try:
        return mood.read_text().strip()
    except FileNotFoundError:
        return "200"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mood: Path) -> None:
    body = mood.name.encode()
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b" /slow" in head:
                await asyncio.sleep(SLOW_S)
            status = _status(mood)
            if status == "none":
                writer.transport.abort()
                return
            writer.write(b"HTTP/1.1 %s X\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _main(port: int, mood: Path) -> None:
    server = await asyncio.start_server(lambda r, w: _serve(r, w, mood), "0.0.0.0", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), Path(sys.argv[2]) / os.environ["UNDERPASS_POD"]))
