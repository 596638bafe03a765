"""What a workload's inbound listener asks for and nothing on this node enforces yet (pure).

A rule that is enforced nowhere must be said: the control plane writes authorization and required mTLS into the inbound
listener, as for a sidecar that would enforce them, and the kernel's programs at the workload's end do not read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from nodeagent.cache.resources import Chain, Listener
from nodeagent.cache.store import Resources

_OPEN: Final = "NOT ENFORCED: every request reaches the workload as if there were no such policy"
_PLAIN: Final = "NOT ENFORCED: connections in plain text reach the workload"
_SKIPPED: Final = "NOT ENFORCED: requests reach the workload without it"
_BLACK_HOLE: Final = "BlackHoleCluster"
_TLS: Final = "downstream-tls"


@dataclass(frozen=True, slots=True)
class Unenforced:
    """One thing that is asked for: what, and what happens instead."""

    reason: str
    effect: str


def unenforced(resources: Resources) -> tuple[Unenforced, ...]:
    """Everything that the inbound listeners of a view ask for, in a deterministic order."""
    policies: dict[str, set[int]] = {}
    filters: dict[str, set[int]] = {}
    strict: set[int] = set()
    for listener in resources.listeners.values():
        if listener.direction != "inbound":
            continue
        groups: dict[int, list[Chain]] = {}
        for chain in _chains(listener):
            groups.setdefault(chain.port, []).append(chain)
            asked = {*chain.policies, *(chain.http.policies if chain.http is not None else ())}
            for name in asked:
                policies.setdefault(name, set()).add(chain.port)
            for name in _filters(chain):
                filters.setdefault(name, set()).add(chain.port)
        strict |= {port for port, chains in groups.items() if _refuses_plaintext(chains)}
    found = [Unenforced(f"AuthorizationPolicy {name} {_at(policies[name])}", _OPEN) for name in sorted(policies)]
    if strict:
        found.append(Unenforced(f"PeerAuthentication requires mTLS {_at(strict)}", _PLAIN))
    found += [Unenforced(f"{name} {_at(filters[name])}", _SKIPPED) for name in sorted(filters)]
    return tuple(found)


def _chains(listener: Listener) -> Iterator[Chain]:
    """Filter chains, but that for the captured connections' own port, which only stops loops."""
    own = {port for _, port in listener.addresses} if listener.capture else set()
    for chain in listener.chains:
        if chain.port not in own or chain.port == 0:
            yield chain
    if listener.default is not None:
        yield listener.default


def _filters(chain: Chain) -> Iterator[str]:
    """Inbound filters that do something; authorization is told by its policies."""
    for name in (*chain.unsupported, *(chain.http.unsupported if chain.http is not None else ())):
        if name.startswith("filter ") and not name.endswith(".rbac"):
            yield name


def _refuses_plaintext(chains: Iterable[Chain]) -> bool:
    """Whether no chain takes plain text: all ask for TLS, or (a proxy without certificates) nothing gets in at all."""
    plain = [chain for chain in chains if "tls" not in chain.conditions and _TLS not in chain.unsupported]
    return all(
        chain.http is None and chain.tcp is not None and all(c.name == _BLACK_HOLE for c in chain.tcp.clusters)
        for chain in plain
    )


def _at(ports: Iterable[int]) -> str:
    """Ports in words; 0 stands for those that no service leads to."""
    named = [str(port) for port in sorted(ports) if port]
    if 0 in ports:
        named.append("all others" if named else "every port")
    return f"at {'port ' if named and named[0].isdigit() else ''}{', '.join(named)}"
