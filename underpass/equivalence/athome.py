"""What underpass-home makes of a request that the kernel leaves to it: its own exchange, played without sockets.

The endpoint answers as the echoing servers of the oracle do, so that both sides of the exchange can be compared: what
the server gets, and what the client is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nodeagent.core.decide import Decision
from nodeagent.core.libcore import Core, Head, HeadReader, ResponseReader
from nodeagent.home.commands import Arm, Chosen, Command, Forward, Open, Send
from nodeagent.home.exchange import Exchange
from nodeagent.home.requests import request_of
from nodeagent.rules.model import Rule, Share
from underpass.equivalence.echo import answer, told
from underpass.equivalence.outcome import Kind, Outcome

_END = b"\r\n\r\n"


def certain(share: Share) -> bool:
    """Whether chance has no part in it."""
    return share.n <= 0 or share.n >= share.of


class AtHome:
    """Plays exchanges. name: the cluster of a number, empty for none."""

    def __init__(self, core: Core, name: Callable[[int], str]) -> None:
        self._core, self._name = core, name

    def outcome(self, reader: HeadReader, data: bytes, head: Head, decision: Decision) -> Outcome | None:
        """What home does; None where chance decides, or where it would wait."""
        rule = decision.rule
        if rule is None or not _playable(rule):
            return None
        exchange = Exchange(
            rule,
            request_of(reader, data, head, False),
            decision,
            ResponseReader(self._core),
            lambda cluster, *_: _some_endpoint(decision, cluster),
            self._core.reason_name,
            lambda: 0.0,
        )
        commands: list[Command] = [*exchange.body(data[head.size : head.size + head.body], True), *exchange.begin()]
        return self._played(exchange, commands, decision, data.startswith(b"HEAD "))

    def _played(self, exchange: Exchange, commands: list[Command], decision: Decision, bodyless: bool) -> Outcome:
        forwarded = b""
        while commands:
            command = commands.pop(0)
            if isinstance(command, Arm) and command.name == "delay":
                commands += exchange.timer("delay")
            elif isinstance(command, Open):
                commands += exchange.opened(False)
            elif isinstance(command, Forward) and not forwarded:
                forwarded = command.data[: command.data.index(_END) + len(_END)]
                commands += exchange.received(answer(0, forwarded))
            elif isinstance(command, Send):
                return self._sent(command.data, forwarded, decision, bodyless)
        return Outcome(Kind.NOTHING, reason="home neither answers nor forwards")

    def _sent(self, data: bytes, forwarded: bytes, decision: Decision, bodyless: bool) -> Outcome:
        status, client = int(data[9:12]), told(data, bodyless=bodyless)
        if forwarded:
            return Outcome(Kind.FORWARD, self._name(decision.cluster), status, head=forwarded, told=client)
        return Outcome(Kind.REPLY, status=status, told=client)


def _playable(rule: Rule) -> bool:
    if rule.delay is not None and rule.delay.share.n:
        return False
    return rule.abort is None or certain(rule.abort.share)


def _some_endpoint(decision: Decision, cluster: int) -> Chosen:
    return replace(decision, reason=0, cluster=cluster, endpoint=1)
