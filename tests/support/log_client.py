"""Asks on and on and says who answered what: ``log_client HOST PORT TARGET CONNECTIONS PER_SECOND``.

A line per answer, when it is there: CLOCK_MONOTONIC, status (0: none), body. A connection that ended is opened again.
Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
import time


async def _ask(host: str, port: int, target: str, pause: float) -> None:
    head = f"GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(pause)
            continue
        try:
            while True:
                writer.write(head)
                answer = await reader.readuntil(b"\r\n\r\n")
                lines = answer.decode().lower().split("\r\n")
                length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
                body = (await reader.readexactly(length)).decode().strip().replace(" ", "_")
                print(f"{time.monotonic():.4f} {lines[0].split()[1]} {body}", flush=True)
                await asyncio.sleep(pause)
        except (asyncio.IncompleteReadError, ConnectionError):
            print(f"{time.monotonic():.4f} 0 -", flush=True)
            writer.close()
        await asyncio.sleep(pause)


async def _main(host: str, port: int, target: str, connections: int, rate: float) -> None:
    asks = [asyncio.create_task(_ask(host, port, target, connections / rate)) for _ in range(connections)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for ask in asks:
        ask.cancel()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
