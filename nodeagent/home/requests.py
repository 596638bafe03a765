"""From a head that was decided to the exchange that carries its rule out."""

from __future__ import annotations

import random

from nodeagent.core.decide import Decider
from nodeagent.core.libcore import FLAG_CLOSE, HeadReader
from nodeagent.home.commands import Chosen, Framing, ParsedHead
from nodeagent.home.exchange import Exchange, Request
from nodeagent.home.relay import Begin


def request_of(reader: HeadReader, judged: bytes, head: ParsedHead, chunked: bool) -> Request:
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
    )


def exchanges(reader: HeadReader, framing: Framing, decider: Decider) -> Begin:
    """What a relay makes exchanges with."""

    def begin(judged: bytes, head: ParsedHead, chunked: bool, decision: Chosen) -> Exchange:
        assert decision.rule is not None
        request = request_of(reader, judged, head, chunked)
        name = reader.core.reason_name
        return Exchange(decision.rule, request, decision, framing, decider.choose, name, random.random)

    return begin
