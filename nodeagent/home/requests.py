"""From a head that was decided to the exchange that carries its rule out."""

from __future__ import annotations

import random

from nodeagent.core.libcore import FLAG_CLOSE, HeadReader
from nodeagent.home.choice import Chooser
from nodeagent.home.commands import Chosen, Framing, ParsedHead
from nodeagent.home.exchange import Exchange, Request
from nodeagent.home.relay import Begin


def request_of(reader: HeadReader, judged: bytes, head: ParsedHead, chunked: bool, source: bytes = b"") -> Request:
    """The request of the head that the reader parsed last. chunked: its body is, and `judged` does not say so."""
    lines = reader.header_lines(judged)
    if chunked:
        lines.append((b"transfer-encoding", b"chunked"))
    return Request(
        method=judged[: judged.index(b" ")],
        target=judged[head.path : head.target_end],
        path=judged[head.path : head.path_end],
        lines=tuple(lines),
        close=bool(head.flags & FLAG_CLOSE),
        source=source,
    )


def exchanges(reader: HeadReader, framing: Framing, chooser: Chooser, source: str) -> Begin:
    """What a relay makes exchanges with. source: the client's address."""

    def begin(judged: bytes, head: ParsedHead, chunked: bool, decision: Chosen) -> Exchange:
        assert decision.rule is not None
        request = request_of(reader, judged, head, chunked, source.encode())
        name = reader.core.reason_name
        return Exchange(decision.rule, request, decision, framing, chooser.choose, name, random.random)

    return begin
