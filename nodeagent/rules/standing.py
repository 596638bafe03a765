"""Answers that are always the same, whatever the request says: those can be given without reading it again (pure)."""

from __future__ import annotations

from typing import Final

from nodeagent.rules import edit
from nodeagent.rules.model import Edits, Rule, Share

__all__ = ["TEXT", "standing_reply"]

#: The content type of texts of our own.
TEXT: Final[edit.Line] = (b"content-type", b"text/plain")


def standing_reply(rule: Rule) -> tuple[int, bytes, bytes] | None:
    """Status, head and body of what every request of the rule's route gets, or None where it depends on the request.

    A direct response or an abort of all requests, without a delay, and with changes of its headers that name nothing of
    the request; byte for byte what `nodeagent.home.exchange` answers to a request that keeps its connection.
    """
    if rule.delay is not None and rule.delay.share.n:
        return None
    direct = rule.direct
    levels = rule.response
    if rule.abort is not None and rule.abort.share.n:
        if not _everybody(rule.abort.share) or rule.cors is not None:
            return None
        status, body, lines = rule.abort.status, b"fault filter abort", [TEXT]
        if direct is not None or rule.redirect is not None:
            levels = ()  # then nobody changes its headers
        elif rule.destinations:
            return None  # the destination's changes come with the choice of one
    elif direct is not None and direct.status != 201 and not 300 <= direct.status < 400:
        status, body = direct.status, direct.body.encode()
        lines = [TEXT] if body else []
    else:
        return None
    if not all(_fixed(level) for level in levels):
        return None
    head = edit.reply(status, edit.edited(lines, levels, lambda _: b""), body, close=False, head_only=True)
    return status, head, b"" if status in (204, 304) else body


def _everybody(share: Share) -> bool:
    return share.n >= share.of


def _fixed(edits: Edits) -> bool:
    return all("%" not in field.value for field in edits.put)
