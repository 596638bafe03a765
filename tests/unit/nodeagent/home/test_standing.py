"""What the kernel answers in home's place is byte for byte what home would have answered."""

from __future__ import annotations

import itertools

import pytest

from nodeagent.core.libcore import Core, ResponseReader
from nodeagent.home.commands import Send
from nodeagent.home.exchange import Exchange, Request
from nodeagent.intent import replies
from nodeagent.intent.homerules import entry
from nodeagent.rules.model import (
    Abort,
    Cors,
    Delay,
    Destination,
    DirectReply,
    Edits,
    Field,
    Origin,
    Placing,
    Redirect,
    Rule,
    Share,
)
from nodeagent.rules.standing import standing_reply
from tests.unit.nodeagent.home.test_exchange import Answer, Given

EDITS = Edits(("x-gone",), (Field("x-one", "1"), Field("content-type", "text/html", Placing.SET)))
STANDING = {
    "direct": Rule(direct=DirectReply(200, "hello")),
    "direct, no body": Rule(direct=DirectReply(403)),
    "direct, no content": Rule(direct=DirectReply(204, "thrown away")),
    "direct, edited": Rule(direct=DirectReply(503, "later"), response=(EDITS, Edits(put=(Field("x-one", "2"),)))),
    "abort": Rule(abort=Abort(418)),
    "abort, edited": Rule(abort=Abort(500), response=(EDITS,)),
    "abort of what is answered anyway": Rule(abort=Abort(500), direct=DirectReply(200, "hi"), response=(EDITS,)),
    "abort of a redirect": Rule(
        abort=Abort(404, Share(10_000, 10_000)), redirect=Redirect(host="b"), response=(EDITS,)
    ),
    "a delay of nobody": Rule(direct=DirectReply(200, "hi"), delay=Delay(1.0, Share(0, 100))),
}
OTHERS = {
    "nothing": Rule(),
    "a redirect": Rule(redirect=Redirect(host="b")),
    "a place": Rule(direct=DirectReply(301)),
    "a created one": Rule(direct=DirectReply(201, "here")),
    "a share": Rule(abort=Abort(500, Share(99, 100))),
    "a delay": Rule(direct=DirectReply(200), delay=Delay(0.1)),
    "an operator": Rule(direct=DirectReply(200), response=(Edits(put=(Field("x", "%REQ(:path)%"),)),)),
    "a destination's changes": Rule(abort=Abort(500), destinations=(Destination("a", response=EDITS),)),
    "cors": Rule(abort=Abort(500), cors=Cors((Origin("https://a"),))),
}


@pytest.mark.needs("core")
@pytest.mark.parametrize(("name", "method"), list(itertools.product(STANDING, ("GET", "HEAD", "POST"))))
def test_home_says_the_same(name: str, method: str) -> None:
    rule = STANDING[name]
    found = standing_reply(rule)
    assert found is not None
    core = Core()
    given = Given(core)
    lines = ((b"Host", b"a"), (b"x-gone", b"1"), (b"Origin", b"https://a"))
    request = Request(method.encode(), b"/x?y=1", b"/x", lines)
    decision = Answer(cluster=0, rule=rule)
    exchange = Exchange(rule, request, decision, ResponseReader(core), given.choose, core.reason_name, lambda: 0.999)
    sent = b"".join(command.data for command in exchange.begin() if isinstance(command, Send))
    status, head, body = found
    assert sent == head + (b"" if method == "HEAD" else body)
    assert int(sent.split()[1]) == status


@pytest.mark.parametrize("name", list(OTHERS))
def test_what_depends_on_the_request_is_homes(name: str) -> None:
    assert standing_reply(OTHERS[name]) is None


def test_a_long_answer_is_homes() -> None:
    assert replies.of_rule(Rule(direct=DirectReply(200, "x" * 800))) is not None
    assert replies.of_rule(Rule(direct=DirectReply(200, "x" * 1000))) is None
    with pytest.raises(ValueError, match="the kernel sends 1000"):
        replies.packed(200, b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000)


def test_a_rule_and_its_reply_have_one_key_that_no_reason_has() -> None:
    taken = {int.from_bytes(key, "little") for key in replies.of_reasons()}
    assert taken and max(taken) < 64
    assert all(entry(rule)[0] >= 64 for rule in STANDING.values())
