"""From a head that was decided to the exchange that carries its rule out."""

from __future__ import annotations

import random
from dataclasses import replace

from nodeagent.core.decide import Decider, Decision
from nodeagent.core.libcore import FLAG_CLOSE, HeadReader
from nodeagent.home.budgets import Budget
from nodeagent.home.choice import Chooser
from nodeagent.home.commands import Chosen, Framing, ParsedHead
from nodeagent.home.exchange import Exchange, Request
from nodeagent.home.relay import Begin, Elsewhere


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


def elsewhere(decider: Decider) -> Elsewhere:
    """Where a plain request goes that finds no connection: as its route's retry policy says."""

    def find(decision: Chosen, tried: list[int]) -> Chosen | None:
        retry = decision.retry if isinstance(decision, Decision) else None
        if retry is None or "connect-failure" not in retry.on or len(tried) > retry.attempts:
            return None
        chosen = decider.choose(decision.cluster, frozenset(tried), retry.avoid)
        return None if chosen.reason else replace(chosen, route=decision.route, retry=retry)

    return find


def exchanges(reader: HeadReader, framing: Framing, chooser: Chooser, source: str, budget: Budget) -> Begin:
    """What a relay makes exchanges with. source: the client's address; budget: its workload's."""

    def begin(judged: bytes, head: ParsedHead, chunked: bool, decision: Chosen) -> Exchange:
        assert decision.rule is not None
        request = request_of(reader, judged, head, chunked, source.encode())
        name = reader.core.reason_name
        return Exchange(decision.rule, request, decision, framing, chooser.choose, name, random.random, budget)

    return begin
