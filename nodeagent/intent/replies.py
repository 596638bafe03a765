"""Responses that the kernel gives itself, as entries of the `replies` map (pure)."""

from __future__ import annotations

from functools import lru_cache

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import REASON_LABELS, Reason
from nodeagent.abi.records import Reply
from nodeagent.rules.model import Rule
from nodeagent.rules.refusal import refusal, status_of
from nodeagent.rules.standing import standing_reply

__all__ = ["of_reasons", "of_rule", "packed"]

#: Requests that no rule takes, or that no endpoint can: home would say the same of each.
_REFUSED = (Reason.NO_VHOST, Reason.NO_ROUTE, Reason.NO_CLUSTER, Reason.NO_ENDPOINT)


def packed(status: int, head: bytes, body: bytes) -> bytes:
    """The map's value of a response; ValueError when it is longer than the kernel may send."""
    text = head + body
    if len(text) > n.REPLY_MAX:
        raise ValueError(f"a response of {len(text)} bytes; the kernel sends {n.REPLY_MAX}")
    return Reply(len(text), len(head), status, text).pack()


@lru_cache(maxsize=n.RULES)
def of_rule(rule: Rule) -> bytes | None:
    """The value for a rule that gives every request the same short answer; None for all others, which are home's."""
    answer = standing_reply(rule)
    if answer is None or len(answer[1]) + len(answer[2]) > n.REPLY_MAX:
        return None
    return packed(*answer)


@lru_cache(maxsize=1)
def of_reasons() -> dict[bytes, bytes]:
    """Keys and values of the refusals that need no rule."""
    found = {}
    for reason in _REFUSED:
        status = status_of(reason)
        text = refusal(status, REASON_LABELS[reason], close=False)
        head, end, body = text.partition(b"\r\n\r\n")
        found[int(reason).to_bytes(8, "little")] = packed(status, head + end, body)
    return found
