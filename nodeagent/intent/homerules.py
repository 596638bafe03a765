"""What home carries out, as entries of the `home_rules` map (pure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Final

from nodeagent.abi import numbers as n
from nodeagent.abi.records import HomeRule
from nodeagent.intent.model import Where
from nodeagent.rules.model import NO_RULE, Destination, Hashed, Limit, Mirror, Rule
from nodeagent.rules.text import encode, key_of

#: The longest number of a cluster, for judging a rule's length before its clusters have numbers.
_ANY_NUMBER: Final = n.CLUSTERS - 1


@lru_cache(maxsize=n.RULES)
def problem(rule: Rule) -> str:
    """Why a rule does not fit into the map, or nothing."""
    size = len(encode(numbered(rule, lambda _: _ANY_NUMBER)))
    return f"its rule has {size} bytes, home's map holds {n.RULE_TEXT}" if size > n.RULE_TEXT else ""


def kept(rule: Rule, features: tuple[str, ...], where: Where) -> Rule:
    """What of a route's rule home has to know: all of one that is home's, of a kernel's route how to try again."""
    if not features:
        return Rule(retry=rule.retry) if rule.retry is not None and rule.retry.attempts else NO_RULE
    return rule if where is Where.HOME else NO_RULE


def numbered(rule: Rule, number: Callable[[str], int]) -> Rule:
    """The rule with its clusters' numbers in place of their names; 0 for one that does not exist."""

    def destination(item: Destination) -> Destination:
        return replace(item, cluster="", number=number(item.cluster))

    def mirror(item: Mirror) -> Mirror:
        return replace(item, cluster="", number=number(item.cluster))

    def hashed(item: Hashed) -> Hashed:
        return replace(item, cluster="", number=number(item.cluster))

    def limit(item: Limit) -> Limit:
        return replace(item, cluster="", number=number(item.cluster))

    return replace(
        rule,
        destinations=tuple(destination(item) for item in rule.destinations),
        mirrors=tuple(mirror(item) for item in rule.mirrors),
        hashed=tuple(hashed(item) for item in rule.hashed),
        limits=tuple(limit(item) for item in rule.limits),
    )


@lru_cache(maxsize=n.RULES)
def entry(rule: Rule) -> tuple[int, bytes]:
    """Key and value in the map of a rule whose clusters have numbers."""
    text = encode(rule)
    return key_of(text), HomeRule(len(text), text).pack()
