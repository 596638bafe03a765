"""The judge (pure): what the cores did with a request, held against what Envoy did with it.

A punt is never wrong: then Envoy, or home, decides. Everything else has to be what Envoy does, to the byte that
reaches the server, but for what a proxy adds of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import sqrt
from typing import Final

from underpass.equivalence.outcome import Judged, Kind, Outcome, Request, Result, Sort

#: What Envoy adds to a request as a proxy, which changes nothing in what the client asked for.
ADDED: Final = frozenset(
    {b"x-forwarded-proto", b"x-request-id", b"x-envoy-attempt-count", b"x-envoy-expected-rq-timeout-ms"}
)
#: Headers of the connection, not of the request (RFC 9110 section 7.6.1): the kernel lets them pass, as the client's
#: connection and the server's are one to it.
CONNECTION: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection"})
#: HTTP status -> grpc-status, 2 for all others (gRPC's http-grpc-status-mapping).
_GRPC: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
#: How far a share may be off, in standard deviations, before the split is called different.
SIGMAS: Final = 5.0


def judge(table: str, request: Request, native: Outcome, kernel: Outcome | None, envoy: Outcome | None) -> Judged:
    """The verdict. kernel, envoy: None where that executor was not asked."""
    result, why = _verdict(request, native, kernel, envoy)
    return Judged(table, request, result, why, native, kernel, envoy)


def _verdict(request: Request, native: Outcome, kernel: Outcome | None, envoy: Outcome | None) -> tuple[Result, str]:
    if kernel is not None and not agree(native, kernel):
        return Result.DIFFERENT, f"libcore {native.text()}, the kernel {kernel.text()}"
    if request.sort is Sort.CUT and native.kind is not Kind.PUNT:
        return Result.DIFFERENT, f"a part of a head was decided: {native.text()}"
    if native.kind is Kind.PUNT:
        home = _home_difference(native, envoy) if envoy is not None else ""
        return (Result.DIFFERENT, f"home: {home}") if home else (Result.PUNTED, native.reason)
    if envoy is None:
        return Result.EQUAL, ""
    difference = _difference(native, envoy)
    return (Result.DIFFERENT, difference) if difference else (Result.EQUAL, "")


def agree(first: Outcome, second: Outcome) -> bool:
    """Whether two cores decided alike: same route, same choice of clusters, same reason."""
    if (first.route, first.domain, first.may) != (second.route, second.domain, second.may):
        return False
    drawn = len(first.may) > 1  # then each of them drew for itself
    return drawn or (first.kind, first.cluster, first.status, first.reason, first.head) == (
        second.kind,
        second.cluster,
        second.status,
        second.reason,
        second.head,
    )


def _difference(native: Outcome, envoy: Outcome) -> str:
    if envoy.kind is Kind.FORWARD:
        if native.kind is not Kind.FORWARD and envoy.cluster not in native.may:
            return f"the core {native.text()}, Envoy {envoy.text()}"
        if envoy.cluster not in native.may:
            may = ", ".join(sorted(native.may))
            return f"the core sends it to {may}, Envoy to {envoy.cluster}"
        return head_difference(native.head, envoy.head) if native.kind is Kind.FORWARD else ""
    if native.kind is Kind.REPLY:
        if _same_status(native, envoy):
            return ""
    elif "" in native.may and envoy.kind is Kind.REPLY and envoy.status == 503:
        return ""  # Envoy drew the destination that does not exist
    return f"the core {native.text()}, Envoy {envoy.text()}"


def _same_status(ours: Outcome, envoy: Outcome) -> bool:
    """Whether both answer alike; Envoy tells a gRPC client the grpc-status that gRPC itself makes of a status."""
    if ours.kind is not Kind.REPLY or envoy.kind is not Kind.REPLY:
        return False
    return ours.status == envoy.status or envoy.grpc == _GRPC.get(ours.status, 2)


def _home_difference(native: Outcome, envoy: Outcome) -> str:
    """What home does otherwise than Envoy with a request that the kernel left to it."""
    home = native.home
    if home is None:
        return ""
    if envoy.grpc >= 0 and _same_status(home, envoy):
        return ""  # the same answer, told to a gRPC client in its own way
    if home.kind is not envoy.kind or (home.kind is Kind.REPLY and home.status != envoy.status):
        if "" in native.may and 503 in (home.status, envoy.status):
            return ""  # one of the two drew the destination that does not exist
        return f"it {home.text()}, Envoy {envoy.text()}"
    if home.kind is Kind.FORWARD:
        if envoy.cluster not in native.may:
            return f"it sends it to {', '.join(sorted(native.may))}, Envoy to {envoy.cluster}"
        if home.cluster != envoy.cluster:
            return ""  # each drew for itself, and destinations may have changes of their own
        difference = head_difference(home.head, envoy.head)
        if difference:
            return difference
    return _told_difference(home, envoy) if home.status != 503 else ""


def _told_difference(home: Outcome, envoy: Outcome) -> str:
    """What the client is told otherwise. Which cluster a server is, and what it got, was compared already."""
    ours, theirs = ([item for item in who.told if not item.startswith(b"x-underpass")] for who in (home, envoy))
    if ours == theirs:
        return ""
    return f"it tells the client {ours[:6]}, Envoy {theirs[:6]}"


def head_difference(sent: bytes, got: bytes) -> str:
    """What differs between a canonical head and the head that Envoy made of it; empty when they say the same."""
    sent_line, sent_headers = _parts(sent)
    got_line, got_headers = _parts(got)
    if sent_line != got_line:
        return f"request line {sent_line!r}, from Envoy {got_line!r}"
    for name in dict.fromkeys((*sent_headers, *got_headers)):
        ours, theirs = sent_headers.get(name), got_headers.get(name)
        if ours == theirs or name in CONNECTION or (ours is None and (name in ADDED or _empty(name, theirs))):
            continue
        if ours is None:
            return f"Envoy adds {_shown(name, theirs)}"
        if theirs is None:
            return f"Envoy takes out {_shown(name, ours)}"
        return f"{_shown(name, ours)}, from Envoy {_shown(name, theirs)}"
    return ""


def _empty(name: bytes, values: list[bytes] | None) -> bool:
    """Envoy says that there is no body where the client said nothing: one and the same (RFC 9112 section 6.3)."""
    return name == b"content-length" and values == [b"0"]


def _shown(name: bytes, values: list[bytes] | None) -> str:
    return f"{name.decode('latin-1')}: {', '.join(value.decode('latin-1') for value in values or ())[:80]}"


def _parts(head: bytes) -> tuple[bytes, dict[bytes, list[bytes]]]:
    """Request line, and values by lower-case name in the order of the lines."""
    line, *rest = head.split(b"\r\n")
    headers: dict[bytes, list[bytes]] = {}
    for item in rest:
        name, colon, value = item.partition(b":")
        if colon:
            headers.setdefault(name.lower(), []).append(value.strip())
    return line, headers


def split_difference(weights: Mapping[str, int], drawn: Counter[str]) -> str:
    """Whether a weighted choice was drawn as the weights say; empty when it was."""
    total, count = sum(weights.values()), drawn.total()
    for name, weight in sorted(weights.items()):
        share = weight / total
        spread = sqrt(count * share * (1 - share))
        if abs(drawn[name] - count * share) > SIGMAS * spread + 1:
            return f"{name} has weight {weight} of {total} and got {drawn[name]} of {count} requests"
    return ""
