"""One request with a rule, sans-IO: delays, attempts, clocks and changes of heads, as Envoy does them.

The relay owns the connection and the request's framing; this owns everything between a decided head and the end of
its response. Of a body no more than `KEPT` bytes are remembered: a request with a longer one is neither tried again
nor mirrored once they are exceeded.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nodeagent.abi.numbers import Reason
from nodeagent.home.budgets import Budget, Budgets
from nodeagent.home.commands import Arm, Chosen, Command, Copy, Disarm, Forward, Framing, Open, Release, Send
from nodeagent.home.hashing import request_hash
from nodeagent.rules import edit
from nodeagent.rules.model import Edits, Hashed, Redirect, Retry, Rule, Share

KEPT: Final = 1 << 16
"""Bytes of a request's body that are remembered for another attempt or a mirror."""
_HEAD_MAX: Final = 1 << 16
"""Bytes of a response head; Envoy's limit is 60 KiB."""
_TEXT: Final = (b"content-type", b"text/plain")
#: The redirect that changes nothing.
_SAME: Final = Redirect()
_LATE: Final = "upstream request timeout"
_BEFORE: Final = "upstream connect error or disconnect/reset before headers. "
_ANY_RESET: Final = frozenset({"reset", "5xx", "gateway-error"})
_FAILED: Final = {"connect-failed": "remote connection failure", "connect-timeout": "connection timeout"}


@dataclass(frozen=True, slots=True)
class Request:
    """A canonical head.

    path: without the query, which `target` has; lines: headers in order, host among them; source: the client's address.
    """

    method: bytes
    target: bytes
    path: bytes
    lines: tuple[edit.Line, ...]
    close: bool = False
    source: bytes = b""

    @property
    def head_only(self) -> bool:
        """Whether responses have no body."""
        return self.method == b"HEAD"

    def value(self, name: bytes) -> bytes:
        """The first header of that lower-case name, or nothing."""
        return edit.first(self.lines, name) or b""


Choose = Callable[[int, frozenset[int], int, Hashed | None, int], Chosen]
"""An endpoint of a cluster, by a hash if that is its way, and not one of those given if some more choices can help."""


class State(enum.Enum):
    """Where a request stands."""

    DELAY = "held back on purpose"
    PAUSE = "between two attempts"
    OPENING = "waiting for the endpoint"
    EXCHANGE = "request out, response in"
    DONE = "answered whole"
    CUT = "answered in part, and that was all"


class Exchange:
    """One request.

    choose: finds an endpoint; random: in [0, 1). After `begin`
    each method takes one happening and returns commands, until `over`; `close` then tells whether the client's
    connection has to end, `state` CUT that it has to end by a reset.
    """

    def __init__(
        self,
        rule: Rule,
        request: Request,
        decision: Chosen,
        framing: Framing,
        choose: Choose,
        name: Callable[[int], str],
        random: Callable[[], float],
        budget: Budget | None = None,
    ) -> None:
        self._rule, self._request, self._decision, self._framing = rule, request, decision, framing
        self._choose, self._name, self._random = choose, name, random
        self.state = State.DELAY
        self.close = False
        self.sent = 0
        self._start = b""  # the request's head as it goes to endpoints
        self._lines: list[edit.Line] = []
        self._chosen = decision
        self._kept: bytearray | None = bytearray()  # of the body; None: too long
        self._whole = False
        self._held = bytearray()  # of the response's head
        self._answered = False  # the client has the response's head
        self._tries = 0
        self._tried: set[int] = set()
        self._reused = self._spared = False
        self._cors = b""  # the origin to be told that it may
        self._hashed: Hashed | None = None
        self._hash = 0
        self._cookie = ""  # made for the hash, and told with the response
        self._budget = Budgets().of(0) if budget is None else budget
        self._limit = next((item for item in rule.limits if item.number == decision.cluster), None)
        self._asking = self._retrying = False  # what of the budget this request has

    # ---- the beginning ----

    @property
    def over(self) -> bool:
        """Nothing more is to come."""
        return self.state in (State.DONE, State.CUT)

    def begin(self) -> list[Command]:
        """Answers at once, waits, or asks for an endpoint."""
        preflight = self._preflight()
        if preflight is not None:
            return preflight
        delay = self._rule.delay
        if delay is not None and self._hits(delay.share):
            return [Arm("delay", delay.seconds)]
        return self._undelayed()

    def _hits(self, share: Share) -> bool:
        return self._random() * share.of < share.n

    def _preflight(self) -> list[Command] | None:
        cors, origin = self._rule.cors, self._request.value(b"origin")
        if cors is None or not origin or self._rule.redirect is not None or self._rule.direct is not None:
            return None  # Envoy's filter leaves routes alone that forward nothing
        allowed = edit.origin_allowed(cors, origin)
        if self._request.method == b"OPTIONS" and self._request.value(b"access-control-request-method"):
            if allowed or not cors.forward_unmatched:
                lines = edit.cors_lines(cors, origin, preflight=True) if allowed else []
                return self._reply(200, lines, b"", levels=())
        elif allowed:
            self._cors = origin
        return None

    def _undelayed(self) -> list[Command]:
        rule = self._rule
        if rule.abort is not None and self._hits(rule.abort.share):
            self._cors = b""  # that filter comes later, and has not seen the request
            answers = rule.redirect is not None or rule.direct is not None  # then nobody changes an abort's headers
            return self._reply(rule.abort.status, [_TEXT], b"fault filter abort", () if answers else None)
        if rule.redirect is not None:
            where = self._location(rule.redirect)
            return self._reply(rule.redirect.code, [(b"location", where)], b"")
        if rule.direct is not None:
            status, body = rule.direct.status, rule.direct.body.encode()
            own: list[edit.Line] = [_TEXT] if body else []
            if status == 201 or 300 <= status < 400:  # Envoy says where it is: where the client asked
                own.append((b"location", self._location(_SAME)))
            return self._reply(status, own, body)
        if not self._decision.cluster:
            return self._refuse(503, self._name(Reason.NO_CLUSTER))
        self._make_head()
        self._make_hash()
        clock: list[Command] = [Arm("timeout", rule.timeout)] if rule.timeout and self._whole else []
        return [*clock, *self._mirrors(), *self._try()]

    def _location(self, redirect: Redirect) -> bytes:
        request = self._request
        scheme = edit.scheme_of(request.value(b"x-forwarded-proto"))
        return edit.location(redirect, request.value(b"host"), request.target, request.path, scheme)

    def _make_head(self) -> None:
        request, rule = self._request, self._rule
        lines = edit.edited(list(request.lines), self._levels("request"))
        target = request.target
        rewrite = rule.rewrite
        if rewrite is not None:
            if rewrite.authority:
                lines = edit.put(lines, b"x-envoy-original-host", request.value(b"host"))
                host = rewrite.authority.encode()
                lines = [(key, host if key.lower() == b"host" else value) for key, value in lines]
            changed = edit.rewritten(target, request.path, rewrite)
            if changed is not None:
                lines = edit.put(lines, b"x-envoy-original-path", request.target)
                target = changed
        self._start, self._lines = request.method + b" " + target + b" HTTP/1.1", lines

    def _make_hash(self) -> None:
        self._hashed = next((h for h in self._rule.hashed if h.number == self._decision.cluster), None)
        if self._hashed is None:
            return
        values: dict[bytes, list[bytes]] = {}
        for name, value in self._request.lines:
            values.setdefault(name.lower(), []).append(value)
        request = self._request
        query, fresh = request.target[len(request.path) :], b"%016x" % self._any()
        found, self._cookie = request_hash(self._rule.hash_on, values, query, request.source, fresh)
        self._hash = self._any() if found is None else found

    def _any(self) -> int:
        return int(self._random() * (1 << 53)) << 11

    def _levels(self, side: str) -> tuple[Edits, ...]:
        rule = self._rule
        common = rule.request if side == "request" else rule.response
        own = next((d for d in rule.destinations if d.number == self._decision.cluster), None)
        if own is None:
            return common
        special = own.request if side == "request" else own.response
        return (*common, special) if rule.specific_last else (special, *common)

    def _asked(self, name: bytes) -> bytes:
        """A header of the request as it was forwarded, or as it came if it was not."""
        return edit.first(self._lines, name) or b"" if self._lines else self._request.value(name)

    # ---- the request's body ----

    @property
    def wants_body(self) -> bool:
        """Whether to read from the client: its body waits in its socket while nobody takes it."""
        return self.state is State.EXCHANGE and not self._whole

    def body(self, data: bytes, whole: bool) -> list[Command]:
        """Bytes of the body, as they are to be forwarded; whole: its last ones. Before `begin`: those at hand."""
        out = self.state is State.EXCHANGE
        if self._kept is not None:
            self._kept += data  # what nobody has yet is kept in any case: no more than was read at once
            if out:
                self._bound()
        self._whole = self._whole or whole
        commands: list[Command] = [Forward(data)] if data and out else []
        if whole and self._lines:
            commands += [*self._clocks(), *self._mirrors()]
        return commands

    def _bound(self) -> None:
        """Keeps no more than is allowed, and nothing for nobody; to be called when an endpoint has got all of it."""
        needed = self._rule.retry is not None or bool(self._rule.mirrors)
        if self._kept is not None and len(self._kept) > (KEPT if needed else 0):
            self._kept = None

    @property
    def unseen(self) -> bool:
        """Whether the body may go on without being shown here."""
        return self.state is State.EXCHANGE and self._kept is None

    def _clocks(self) -> list[Command]:
        """Envoy's clocks begin when the request is whole."""
        retry = self._rule.retry
        clocks: list[Command] = [Arm("timeout", self._rule.timeout)] if self._rule.timeout else []
        if retry is not None and retry.per_try:
            clocks.append(Arm("try", retry.per_try))
        return clocks

    def _mirrors(self) -> list[Command]:
        """Copies of a request that is whole and was kept."""
        if not self._whole or self._kept is None:
            return []
        copies: list[Command] = []
        for mirror in self._rule.mirrors:
            if not mirror.number or not self._hits(mirror.share):
                continue
            host = edit.first(self._lines, b"host") or b""
            shadow = edit.shadow_host(host) if mirror.suffix else host
            lines = [(key, shadow if key.lower() == b"host" else value) for key, value in self._lines]
            data = edit.render(self._start, lines) + bytes(self._kept)
            copies.append(Copy(mirror.number, data, self._request.head_only))
        return copies

    # ---- attempts ----

    def _try(self) -> list[Command]:
        retry = self._rule.retry
        avoid = retry.avoid if retry is not None and self._tries else 0
        self._tries += 1
        chosen = self._choose(self._decision.cluster, frozenset(self._tried), avoid, self._hashed, self._hash)
        if chosen.reason:
            return self._refuse(503, self._name(chosen.reason))
        self._tried.add(chosen.endpoint)
        return self._open(chosen, fresh=not self._replayable)

    def _open(self, chosen: Chosen, *, fresh: bool) -> list[Command]:
        self._chosen = chosen
        self.state = State.OPENING
        retry = self._rule.retry
        clock: list[Command] = []
        if retry is not None and retry.per_try and self._whole:
            clock.append(Arm("try", retry.per_try))
        return [*clock, Open(chosen, fresh)]

    @property
    def _replayable(self) -> bool:
        """Whether a second attempt is safe where the first may have had an effect, and everything is at hand."""
        return self._request.method in (b"GET", b"HEAD", b"OPTIONS", b"TRACE") and self._whole and not self._kept

    def opened(self, reused: bool) -> list[Command]:
        """The connection asked for is there. reused: it has served before, and may be at its end."""
        self.state = State.EXCHANGE
        self._reused = reused
        self._held.clear()
        self._framing.begin(self._request.head_only)
        if self._limit is not None and not self._asking:
            if not self._budget.take_request(self._limit):
                # never tried again, whatever the policy says: it would only add to what is too much
                lines = [_TEXT, (b"x-envoy-overloaded", b"true"), (b"x-underpass-reason", b"overflow")]
                return [Release(True, blame=False), *self._unavailable("overflow", "overflow", lines)]
            self._asking = True
        data = edit.render(self._start, self._lines) + bytes(self._kept or b"")
        self._bound()
        return [Forward(data)]

    def failed(self, name: str) -> list[Command]:
        """The connection asked for cannot be had."""
        again = self._again({"connect-failure"} | _ANY_RESET)
        return again if again is not None else self._unavailable(_FAILED.get(name, name), name)

    def _again(self, conditions: frozenset[str] | set[str]) -> list[Command] | None:
        """Another attempt if the policy has one of the conditions and attempts left; None: none."""
        retry = self._rule.retry
        self._settle(retry=True)
        if retry is None or self._answered or self._kept is None or self._tries > retry.attempts:
            return None
        if conditions.isdisjoint(retry.on):
            return None
        if self._limit is not None:
            if not self._budget.take_retry(self._limit):
                return None
            self._retrying = True
            self._settle()
        self.state = State.PAUSE
        return [Release(False), Arm("pause", self._pause(retry))]

    def _settle(self, *, retry: bool = False) -> None:
        """Gives the budget of the request back, or that of a retry whose outcome is known."""
        if self._limit is None:
            return
        if retry and self._retrying:
            self._budget.give_retry(self._limit)
            self._retrying = False
        elif not retry and self._asking:
            self._budget.give_request(self._limit)
            self._asking = False

    def _over(self, state: State) -> None:
        """Nothing more is to come."""
        self.state = state
        self._settle()
        self._settle(retry=True)

    def _pause(self, retry: Retry) -> float:
        return self._random() * min(retry.ceiling, retry.base * (1 << min(self._tries - 1, 20)))

    # ---- clocks ----

    def timer(self, name: str) -> list[Command]:
        """A clock that was armed is due."""
        if name == "delay" and self.state is State.DELAY:
            return self._undelayed()
        if name == "pause" and self.state is State.PAUSE:
            return self._try()
        if name == "try" and self.state in (State.OPENING, State.EXCHANGE) and not self._answered:
            return self._again(_ANY_RESET) or self._late()
        if name == "timeout" and not self.over:
            return self._late()
        return []

    def _late(self) -> list[Command]:
        if self._answered:
            return self._cut()
        return [Release(False), *self._reply(504, [_TEXT], _LATE.encode())]

    # ---- the response ----

    @property
    def wants_endpoint(self) -> bool:
        """Whether to read from the endpoint."""
        return self.state is State.EXCHANGE

    @property
    def body_ahead(self) -> int:
        """How many of the endpoint's next bytes may go to the client unseen."""
        return self._framing.unread() if self.state is State.EXCHANGE and self._answered else 0

    def received(self, data: bytes) -> list[Command]:
        """Bytes from the endpoint."""
        own = self._framing.feed(data)
        if self._framing.lost or not own:
            return self._broken("bad-response", "protocol error")
        if self._answered:
            return self._pass_on(data[:own], len(data) == own)
        self._held += data[:own]
        return self._heads(len(data) == own)

    def passed(self, size: int) -> list[Command]:
        """That many bytes of a body went to the client unseen."""
        self._framing.skip(size)
        self.sent += size
        return self._pass_on(b"", True)

    def _heads(self, exact: bool) -> list[Command]:
        """Looks at what is held of the response: interim heads go on as they are, the final one is acted on."""
        out: list[Command] = []
        while True:
            end = self._held.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(self._held) > _HEAD_MAX:
                    return [*out, *self._broken("bad-response", "protocol error")]
                return out
            head = bytes(self._held[:end])
            found = edit.parse_response(head)
            if found is None or found[1] == 101:
                return [*out, *self._broken("bad-response", "protocol error")]
            del self._held[:end]
            if found[1] >= 200:
                return [*out, *self._final(*found, exact)]
            out.append(self._send(head))

    def _final(self, start: bytes, status: int, lines: list[edit.Line], exact: bool) -> list[Command]:
        again = self._again(self._conditions(status, lines))
        if again is not None:
            return again
        if self._cookie:
            lines = [*lines, (b"set-cookie", self._cookie.encode())]
        lines = edit.edited(lines, self._levels("response"), self._asked)
        if self._cors and self._rule.cors is not None:
            for name, value in edit.cors_lines(self._rule.cors, self._cors, preflight=False):
                lines = edit.put(lines, name, value)
        self._answered = True
        rest, self._held = bytes(self._held), bytearray()
        return self._pass_on(edit.render(start, lines) + rest, exact)

    def _conditions(self, status: int, lines: list[edit.Line]) -> set[str]:
        """The retry conditions that a response meets."""
        met: set[str] = set()
        retry = self._rule.retry
        if edit.first(lines, b"x-envoy-ratelimited") is not None:
            return met  # trying again would only add to what is too much
        if status >= 500:
            met.add("5xx")
        if status in (502, 503, 504):
            met.add("gateway-error")
        if status == 409:
            met.add("retriable-4xx")
        if retry is not None and status in retry.codes:
            met.add("retriable-status-codes")
        return met

    def _send(self, data: bytes) -> Send:
        self.sent += len(data)
        return Send(data)

    def _pass_on(self, data: bytes, exact: bool) -> list[Command]:
        send: list[Command] = [self._send(data)] if data else []
        if not self._framing.over:
            return send
        self.close = self._framing.closing
        self._over(State.DONE)
        return [*send, Disarm(), Release(exact and not self.close and self._whole)]

    def eof(self) -> list[Command]:
        """The endpoint has closed or reset its connection."""
        if self.state is not State.EXCHANGE:
            return []
        if self._answered and self._framing.until_close:
            self.close = True
            self._over(State.DONE)
            return [Disarm(), Release(False)]
        again = self._rule.retry is not None and not _ANY_RESET.isdisjoint(self._rule.retry.on)
        if self._reused and not self._spared and not self._held and self._replayable and not again:
            # a kept connection that its endpoint was about to close, which no policy is asked for
            self._spared = True
            return [Release(False), *self._open(self._chosen, fresh=True)]
        return self._broken("endpoint-closed", "connection termination")

    def _broken(self, name: str, reason: str) -> list[Command]:
        if self._answered:
            return self._cut()
        return self._again(_ANY_RESET) or [Release(False), *self._unavailable(reason, name)]

    def gone(self) -> list[Command]:
        """The client has given up."""
        holding = self.state in (State.OPENING, State.EXCHANGE)
        self._over(State.CUT)
        return [Disarm(), Release(False, blame=False)] if holding else [Disarm()]

    def _cut(self) -> list[Command]:
        self._over(State.CUT)
        return [Disarm(), Release(False)]

    # ---- answers of our own ----

    def _unavailable(self, reason: str, name: str, lines: list[edit.Line] | None = None) -> list[Command]:
        text = "retried and the latest reset reason: " if self._tries > 1 else "reset reason: "
        own = lines or [_TEXT, (b"x-underpass-reason", name.encode())]
        return self._reply(503, own, (_BEFORE + text + reason).encode())

    def _refuse(self, status: int, name: str) -> list[Command]:
        return self._reply(status, [_TEXT, (b"x-underpass-reason", name.encode())], f"underpass: {name}\n".encode())

    def _reply(
        self, status: int, lines: list[edit.Line], body: bytes, levels: tuple[Edits, ...] | None = None
    ) -> list[Command]:
        levels = self._levels("response") if levels is None else levels
        lines = edit.edited(lines, levels, self._asked)
        if levels and self._cors and self._rule.cors is not None:
            for name, value in edit.cors_lines(self._rule.cors, self._cors, preflight=False):
                lines = edit.put(lines, name, value)
        self.close = self._request.close
        self._over(State.DONE)
        data = edit.reply(status, lines, body, close=self.close, head_only=self._request.head_only)
        return [Disarm(), self._send(data)]
