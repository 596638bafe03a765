"""Workloads that keep to underpass-home although the home addresses are an Envoy's (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nodeagent.abi import numbers as n
from nodeagent.abi.records import Workload
from nodeagent.intent.model import Intent, Table


def set_apart(intent: Intent, workloads: Iterable[str]) -> Intent:
    """The same intent, with these workloads (by key) marked; those that are not enrolled are passed over."""
    entries = dict(intent.entries.get(Table.WORKLOADS, {}))
    for key in workloads:
        number = intent.enrolled.get(key)
        if number is not None:
            at = number.to_bytes(4, "little")
            record = Workload.unpack(entries[at])
            entries[at] = replace(record, flags=record.flags | n.WF_APART).pack()
    return replace(intent, entries={**intent.entries, Table.WORKLOADS: entries})
