"""Exchanges as scripts: happenings in, commands out. Responses are read by libcore; chance and endpoints are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

from nodeagent.core.libcore import Core, ResponseReader
from nodeagent.home.budgets import Budgets
from nodeagent.home.commands import Arm, Command, Copy, Disarm, Forward, Open, Release, Send
from nodeagent.home.exchange import KEPT, Exchange, Request, State
from nodeagent.rules.model import (
    Abort,
    Comparison,
    Cors,
    Delay,
    Destination,
    DirectReply,
    Edits,
    Field,
    Limit,
    Mirror,
    Origin,
    Placing,
    Redirect,
    Regex,
    Retry,
    Rewrite,
    Rule,
    Share,
)

pytestmark = pytest.mark.needs("core")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
BAD = b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"


@dataclass(frozen=True)
class Answer:
    """A decision, or an endpoint of it."""

    reason: int = 0
    route: int = 7
    cluster: int = 3
    endpoint: int = 0
    rule: Rule | None = None


class Given:
    """What an exchange asks for: endpoints in turn, and one number for chance."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.chance = 0.5
        self.asked: list[tuple[int, frozenset[int], int]] = []
        self.reason = 0

    def choose(self, cluster: int, tried: frozenset[int], avoid: int, *_: object) -> Answer:
        self.asked.append((cluster, tried, avoid))
        return Answer(reason=self.reason, endpoint=len(self.asked))


Make = Callable[..., Exchange]


@pytest.fixture(scope="module")
def core() -> Core:
    return Core()


@pytest.fixture
def given(core: Core) -> Given:
    return Given(core)


@pytest.fixture
def make(core: Core, given: Given) -> Make:
    def build(
        rule: Rule,
        method: bytes = b"GET",
        target: bytes = b"/a?q=1",
        body: bytes = b"",
        whole: bool = True,
        **more: bytes,
    ) -> Exchange:
        lines = [(b"Host", b"h:80"), *((k.replace("_", "-").encode(), v) for k, v in more.items())]
        request = Request(method, target, target.partition(b"?")[0], tuple(lines))
        exchange = Exchange(
            rule, request, Answer(), ResponseReader(core), given.choose, core.reason_name, lambda: given.chance
        )
        assert exchange.body(body, whole) == []
        return exchange

    return build


def sent(commands: list[Command]) -> bytes:
    return b"".join(command.data for command in commands if isinstance(command, Send))


def forwarded(commands: list[Command]) -> bytes:
    return b"".join(command.data for command in commands if isinstance(command, Forward))


def armed(commands: list[Command]) -> dict[str, float]:
    return {command.name: command.seconds for command in commands if isinstance(command, Arm)}


def kinds(commands: list[Command]) -> list[type]:
    return [type(command) for command in commands]


def through(exchange: Exchange, response: bytes = OK) -> tuple[bytes, bytes]:
    """What the endpoint and the client got."""
    assert kinds(exchange.begin())[-1] is Open
    request = forwarded(exchange.opened(False))
    commands = exchange.received(response)
    assert exchange.state is State.DONE
    assert exchange.sent == len(sent(commands))
    return request, sent(commands)


def put(name: str, value: str, placing: Placing = Placing.APPEND) -> Field:
    return Field(name, value, placing)


def test_edits_are_made_level_by_level(make: Make) -> None:
    """As Envoy 1.40 does it: the destination's first, removals before additions, empty values never."""
    rule = Rule(
        request=(
            Edits(("x-gone",), (put("x-lvl", "route", Placing.SET), put("x-app", "route %REQ(x-in)% 100%%"))),
            Edits((), (put("x-lvl", "table", Placing.SET), put("x-new", "n", Placing.IF_ABSENT))),
            Edits((), (put("x-in", "n", Placing.IF_ABSENT), put("x-old", "n", Placing.IF_PRESENT), put("x-no", ""))),
        ),
        response=(Edits(("x-up",), (put("x-r", "route"),)),),
        destinations=(
            Destination("", Edits((), (put("x-lvl", "dest", Placing.SET), put("x-app", "dest"))), Edits(), number=3),
            Destination("", Edits((), (put("x-app", "other"),)), number=4),
        ),
    )
    request, response = through(
        make(rule, x_gone=b"1", x_lvl=b"mine", X_App=b"mine", x_in=b"hello", x_old=b"o"),
        b"HTTP/1.1 200 OK\r\nX-Up: 1\r\nContent-Length: 0\r\n\r\n",
    )
    head = request.removeprefix(b"GET /a?q=1 HTTP/1.1\r\nHost: h:80\r\n").removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert sorted(head) == sorted([
        b"X-App: mine", b"x-in: hello", b"x-app: dest", b"x-app: route hello 100%", b"x-lvl: table", b"x-new: n",
        b"x-old: n",
    ])  # fmt: skip
    assert response == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nx-r: route\r\n\r\n"


@pytest.mark.parametrize(
    ("rewrite", "target", "expected"),
    [
        (Rewrite("/", 4), b"/pre/a?q=1", b"//a?q=1"),
        (Rewrite("/new", 4), b"/pre?q", b"/new?q"),
        (Rewrite("/all"), b"/pre/a?q", b"/all?q"),
        (Rewrite(regex=Regex("^/f(.*)$", "/x\\1/y")), b"/full?q=/f", b"/xull/y?q=/f"),
        (Rewrite(regex=Regex("a", "b\\\\")), b"/a/a", b"/b\\/b\\"),
    ],
)
def test_paths_are_rewritten(make: Make, rewrite: Rewrite, target: bytes, expected: bytes) -> None:
    request, _ = through(make(Rule(rewrite=rewrite), target=target))
    assert request == b"GET %s HTTP/1.1\r\nHost: h:80\r\nx-envoy-original-path: %s\r\n\r\n" % (expected, target)


def test_a_host_is_rewritten(make: Make) -> None:
    request, _ = through(make(Rule(rewrite=Rewrite(authority="o:9"))))
    assert request == b"GET /a?q=1 HTTP/1.1\r\nHost: o:9\r\nx-envoy-original-host: h:80\r\n\r\n"


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        (Redirect(host="x.example", path="/p"), b"http://x.example/p?q=1"),
        (Redirect(scheme="https"), b"https://h/a?q=1"),
        (Redirect(port=8443, strip_query=True), b"http://h:8443/a"),
        (Redirect(path="/p?a=b", strip_query=True), b"http://h:80/p?a=b"),
        (Redirect(rewrite=Rewrite("/z", 2)), b"http://h:80/z?q=1"),
    ],
)
def test_redirects(make: Make, redirect: Redirect, expected: bytes) -> None:
    exchange = make(Rule(redirect=redirect))
    answer = sent(exchange.begin())
    assert answer == b"HTTP/1.1 301 Moved Permanently\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % expected
    assert exchange.over


def test_a_direct_reply(make: Make) -> None:
    rule = Rule(
        direct=DirectReply(200, "tea"), response=(Edits((), (put("content-type", "a/b", Placing.SET), put("x", "y"))),)
    )
    assert sent(make(rule).begin()).endswith(b"\r\ncontent-type: a/b\r\nx: y\r\ncontent-length: 3\r\n\r\ntea")
    assert sent(make(rule, b"HEAD").begin()).endswith(b"content-length: 3\r\n\r\n")
    assert sent(make(Rule(direct=DirectReply(204))).begin()) == b"HTTP/1.1 204 No Content\r\n\r\n"


def test_faults_hit_their_share(make: Make, given: Given) -> None:
    rule = Rule(delay=Delay(2.0, Share(60)), abort=Abort(555, Share(3000, 10_000)))
    exchange = make(rule)
    assert exchange.begin() == [Arm("delay", 2.0)]
    assert kinds(exchange.timer("delay")) == [Open], "30 % are aborted, and chance says 50"
    given.chance = 0.2
    exchange = make(rule)
    exchange.begin()
    assert not exchange.wants_body
    assert b"HTTP/1.1 555 Unknown" in sent(exchange.timer("delay"))
    given.chance = 0.7
    assert kinds(make(rule).begin()) == [Open]


def test_a_timeout_begins_when_the_request_is_whole(make: Make) -> None:
    exchange = make(Rule(timeout=3.0), b"POST", body=b"a", whole=False)
    assert not armed(exchange.begin())
    assert not armed(exchange.opened(False))
    assert armed(exchange.body(b"b", True)) == {"timeout": 3.0}
    commands = exchange.timer("timeout")
    assert kinds(commands) == [Release, Disarm, Send]
    assert sent(commands).startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert sent(commands).endswith(b"\r\n\r\nupstream request timeout")
    assert exchange.timer("timeout") == []


def test_a_timeout_in_the_middle_of_an_answer_cuts_it(make: Make) -> None:
    exchange = make(Rule(timeout=3.0))
    assert armed(exchange.begin()) == {"timeout": 3.0}
    exchange.opened(False)
    assert sent(exchange.received(OK[:-1]))
    exchange.timer("timeout")
    assert exchange.state is State.CUT


def test_retries_go_elsewhere_and_end(make: Make, given: Given) -> None:
    exchange = make(Rule(retry=Retry(("5xx",), 2, avoid=5)), b"POST", body=b"body")
    exchange.begin()
    for attempt in (1, 2):
        assert forwarded(exchange.opened(False)).endswith(b"\r\n\r\nbody")
        commands = exchange.received(BAD)
        assert kinds(commands) == [Release, Arm]
        assert armed(commands) == {"pause": 0.5 * 0.025 * 2 ** (attempt - 1)}
        assert kinds(exchange.timer("pause")) == [Open]
    exchange.opened(False)
    commands = exchange.received(BAD)
    assert sent(commands) == BAD
    assert given.asked == [(3, frozenset(), 0), (3, frozenset({1}), 5), (3, frozenset({1, 2}), 5)]


@pytest.mark.parametrize(
    ("on", "codes", "status", "again"),
    [
        ("5xx", (), 500, True), ("5xx", (), 404, False), ("gateway-error", (), 503, True),
        ("gateway-error", (), 500, False), ("retriable-status-codes", (404,), 404, True),
        ("retriable-status-codes", (404,), 503, False), ("retriable-4xx", (), 409, True), ("reset", (), 503, False),
        ("connect-failure", (), 503, False),
    ],
)  # fmt: skip
def test_which_answers_are_tried_again(make: Make, on: str, codes: tuple[int, ...], status: int, again: bool) -> None:
    exchange = make(Rule(retry=Retry((on,), 1, codes=codes)))
    exchange.begin()
    exchange.opened(False)
    commands = exchange.received(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    assert (exchange.state is State.PAUSE) is again
    assert bool(sent(commands)) is not again


@pytest.mark.parametrize(("on", "again"), [("connect-failure", True), ("reset", True), ("5xx", True), ("x", False)])
def test_no_connection(make: Make, on: str, again: bool) -> None:
    exchange = make(Rule(retry=Retry((on,), 1)))
    exchange.begin()
    commands = exchange.failed("connect-failed")
    assert (exchange.state is State.PAUSE) is again
    if not again:
        assert b"reset reason: remote connection failure" in sent(commands)
        assert sent(commands).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(("on", "again"), [("connect-failure", False), ("reset", True), ("gateway-error", True)])
def test_a_reset(make: Make, on: str, again: bool) -> None:
    exchange = make(Rule(retry=Retry((on,), 1)))
    exchange.begin()
    exchange.opened(False)
    commands = exchange.eof()
    assert (exchange.state is State.PAUSE) is again
    if not again:
        assert b"reset reason: connection termination" in sent(commands)


def test_a_reset_behind_the_head_is_no_retry(make: Make) -> None:
    exchange = make(Rule(retry=Retry(("reset", "5xx"), 2)))
    exchange.begin()
    exchange.opened(False)
    exchange.received(OK[:-1])
    assert kinds(exchange.eof()) == [Disarm, Release]
    assert exchange.state is State.CUT


def test_a_try_has_its_own_clock(make: Make) -> None:
    exchange = make(Rule(retry=Retry(("5xx",), 1, per_try=0.3), timeout=9.0))
    assert armed(exchange.begin()) == {"timeout": 9.0, "try": 0.3}
    exchange.opened(False)
    assert kinds(exchange.timer("try")) == [Release, Arm]
    assert armed(exchange.timer("pause")) == {"try": 0.3}
    exchange.opened(False)
    assert sent(exchange.timer("try")).startswith(b"HTTP/1.1 504 ")


def test_a_long_body_is_not_kept(make: Make) -> None:
    exchange = make(Rule(retry=Retry(("5xx",), 3), mirrors=(Mirror(number=5),)), b"POST", whole=False)
    exchange.begin()
    exchange.opened(False)
    assert kinds(exchange.body(b"x" * (KEPT + 1), False)) == [Forward]
    assert exchange.unseen
    assert kinds(exchange.body(b"y", True)) == [Forward], "no copy of what was not kept"
    assert sent(exchange.received(BAD)) == BAD


def test_a_body_that_goes_on_over_a_retry(make: Make) -> None:
    exchange = make(Rule(retry=Retry(("reset",), 3)), b"POST", body=b"a", whole=False)
    exchange.begin()
    exchange.opened(False)
    exchange.body(b"b", False)
    exchange.eof()
    assert exchange.body(b"c", False) == [], "between attempts it waits"
    exchange.timer("pause")
    assert forwarded(exchange.opened(False)).endswith(b"\r\n\r\nabc")
    assert exchange.body(b"d", True) == [Forward(b"d")]


def test_a_kept_connection_at_its_end_is_no_attempt(make: Make) -> None:
    exchange = make(Rule(timeout=3.0))
    exchange.begin()
    exchange.opened(True)
    commands = exchange.eof()
    assert kinds(commands) == [Release, Open]
    assert isinstance(commands[1], Open)
    assert commands[1].fresh
    exchange.opened(False)
    assert sent(exchange.eof()).startswith(b"HTTP/1.1 503 ")


def test_mirrors_get_whole_requests(make: Make, given: Given) -> None:
    mirrors = (Mirror(number=5), Mirror(number=6, share=Share(10)), Mirror(number=7, suffix=False), Mirror(number=0))
    exchange = make(Rule(mirrors=mirrors), b"POST", body=b"ab", whole=False)
    assert kinds(exchange.begin()) == [Open]
    exchange.opened(False)
    copies = [command for command in exchange.body(b"c", True) if isinstance(command, Copy)]
    assert [(copy.cluster, copy.request) for copy in copies] == [
        (5, b"POST /a?q=1 HTTP/1.1\r\nHost: h-shadow:80\r\n\r\nabc"),
        (7, b"POST /a?q=1 HTTP/1.1\r\nHost: h:80\r\n\r\nabc"),
    ]


def test_interim_heads_and_a_head_in_pieces(make: Make) -> None:
    whole = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nx: y\r\n\r\n" + OK
    rule = Rule(response=(Edits((), (put("a", "b"),)),))
    expected = whole.replace(b"\r\n\r\nhi", b"\r\na: b\r\n\r\nhi")
    for cut in range(len(whole)):
        exchange = make(rule)
        exchange.begin()
        exchange.opened(False)
        commands = exchange.received(whole[:cut]) if cut else []
        commands += exchange.received(whole[cut:])
        assert sent(commands) == expected
        assert commands[-1] == Release(True)


@pytest.mark.parametrize("bad", [b"HTTP/1.1 101 S\r\n\r\n", b"HTTP/1.1 200 OK\r\na : b\r\nContent-Length: 0\r\n\r\n"])
def test_a_response_that_would_have_to_be_repaired(make: Make, bad: bytes) -> None:
    exchange = make(Rule(timeout=3.0))
    exchange.begin()
    exchange.opened(False)
    answer = sent(exchange.received(bad))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"x-underpass-reason: bad-response" in answer


CORS = Cors((Origin("http://o"), Origin("^http://[a-z]+$", Comparison.REGEX)), "GET,PUT", "x-a", "x-e", "100", True)
ASK = {"Origin": b"http://o", "Access_Control_Request_Method": b"PUT"}


def test_cors(make: Make) -> None:
    rule = Rule(cors=CORS, response=(Edits((), (put("x-r", "y"),)),))
    answer = sent(make(rule, b"OPTIONS", **ASK).begin())
    assert answer == (
        b"HTTP/1.1 200 OK\r\naccess-control-allow-origin: http://o\r\naccess-control-allow-credentials: true\r\n"
        b"access-control-allow-methods: GET,PUT\r\naccess-control-allow-headers: x-a\r\naccess-control-max-age: 100\r\n"
        b"access-control-expose-headers: x-e\r\ncontent-length: 0\r\n\r\n"
    )
    assert kinds(make(rule, b"OPTIONS", Origin=b"http://1", Access_Control_Request_Method=b"PUT").begin()) == [Open]
    _, response = through(make(rule, Origin=b"http://abc"))
    assert b"\r\nx-r: y\r\naccess-control-allow-origin: http://abc\r\n" in response
    assert b"access-control-expose-headers: x-e" in response
    _, response = through(make(rule, Origin=b"http://1"))
    assert b"access-control" not in response


def test_no_endpoint(make: Make, given: Given) -> None:
    given.reason = 24
    answer = sent(make(Rule(timeout=1.0)).begin())
    assert b"x-underpass-reason: no-endpoint" in answer


def test_the_client_gives_up(make: Make) -> None:
    exchange = make(Rule(delay=Delay(1.0)))
    exchange.begin()
    assert exchange.gone() == [Disarm()]
    assert exchange.timer("delay") == []
    exchange = make(Rule(timeout=1.0))
    exchange.begin()
    assert exchange.gone() == [Disarm(), Release(False)]


def test_a_destination_takes_so_many_requests_at_once(make: Make) -> None:
    budgets = Budgets()
    rule = Rule(retry=Retry(on=("5xx", "reset"), attempts=3), limits=(Limit(number=3, requests=1),))
    first, second = make(rule), make(rule)
    for exchange in (first, second):
        exchange._budget = budgets.of(1)
        exchange.begin()
    assert first.opened(reused=False)[-1] == Forward(b"GET /a?q=1 HTTP/1.1\r\nHost: h:80\r\n\r\n")
    told = second.opened(reused=False)
    assert told[0] == Release(True), "the connection was not used"
    assert second.state is State.DONE, "what is too much is not tried again"
    head = next(command.data for command in told if isinstance(command, Send))
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nx-envoy-overloaded: true\r\n" in head
    assert head.endswith(b"reset reason: overflow")
    other = make(rule)
    other._budget = budgets.of(2)
    other.begin()
    assert isinstance(other.opened(reused=False)[-1], Forward), "another workload has its own"
    first.received(OK)
    assert first.over
    third = make(rule)
    third._budget = budgets.of(1)
    third.begin()
    assert isinstance(third.opened(reused=False)[-1], Forward)
    third.gone()
    other.eof()
    other.gone()
    assert not budgets.requests


def test_so_many_retries_are_under_way_at_once(make: Make) -> None:
    budgets = Budgets()
    rule = Rule(retry=Retry(on=("5xx",), attempts=2), limits=(Limit(number=3, retries=1),))
    first, second = make(rule), make(rule)
    for exchange in (first, second):
        exchange._budget = budgets.of(1)
        exchange.begin()
        exchange.opened(reused=False)
    assert first.received(BAD)[-1] == Arm("pause", 0.0125)
    told = second.received(BAD)
    assert second.state is State.DONE
    assert any(isinstance(command, Send) and command.data.startswith(b"HTTP/1.1 503") for command in told)
    # the outcome of the first one's retry is known: there is room again, for itself, too
    first.timer("pause")
    first.opened(reused=False)
    assert first.received(BAD)[-1] == Arm("pause", 0.025)
    assert sum(budgets.retries.values()) == 1
    first.timer("pause")
    first.opened(reused=False)
    first.received(OK)
    assert not budgets.retries
    assert not budgets.requests


@given_values(
    st.lists(st.sampled_from(["ok", "bad", "eof", "gone", "timer", "opened", "failed", "timeout"]), max_size=14),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from([-1, 0, 1]),
)
def test_whatever_happens_the_budget_is_given_back(
    core: Core, happenings: list[str], requests: int, retries: int
) -> None:
    budgets, given_ = Budgets(), Given(core)
    rule = Rule(timeout=9.0, retry=Retry(on=("5xx", "reset"), attempts=3), limits=(Limit("", requests, retries, 3),))
    request = Request(b"GET", b"/", b"/", ((b"Host", b"h"),))
    exchange = Exchange(
        rule, request, Answer(), ResponseReader(core), given_.choose, core.reason_name, lambda: 0.5, budgets.of(1)
    )
    exchange.body(b"", True)
    exchange.begin()
    for happening in happenings:
        if exchange.over:
            break
        if happening == "opened" and exchange.state is State.OPENING:
            exchange.opened(reused=False)
        elif happening == "failed" and exchange.state is State.OPENING:
            exchange.failed("connect-failed")
        elif happening in ("ok", "bad") and exchange.state is State.EXCHANGE:
            exchange.received(OK if happening == "ok" else BAD)
        elif happening == "eof":
            exchange.eof()
        elif happening == "timer":
            exchange.timer("pause")
        elif happening == "timeout":
            exchange.timer("timeout")
        elif happening == "gone":
            exchange.gone()
        assert sum(budgets.requests.values()) <= (1 if exchange.state is State.EXCHANGE else 0)
    if not exchange.over:
        exchange.gone()
    assert not budgets.requests
    assert not budgets.retries
