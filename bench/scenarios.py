"""What is asked of each path."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """One row group of the table.

    `service` is what the client connects to: "web" (HTTP, two endpoints on this node), "far" (the same on the other
    node) or "tcp" (a port that is not HTTP). `load` says who asks and how: "requests" is wrk, with `mix` telling
    whether requests change endpoint; "get", "put" and "slow" move large bodies.

    `pinned` keeps the servers on the first CPU and the load on the last one: left to the scheduler the pair sits on
    one in one second and on two in the next, on every path alike, which drowns the few percent that are looked for. Not
    where proxies are compared: the scheduler finds a place for them, and would be denied it. `times` makes a sample
    longer than others are: 64 MiB take each of 32 connections half a second, and most of two seconds would be their
    beginning.
    """

    name: str
    service: str = "web"
    load: str = "requests"
    mix: str = "switch"
    close: bool = False
    pinned: bool = False
    times: int = 1


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("http-switch"),
    Scenario("http-stay", mix="stay"),
    Scenario("http-two-nodes", service="far"),
    Scenario("l4", service="tcp", mix="stay", pinned=True),
    Scenario("short-connections", close=True),
    Scenario("body-64MiB", load="get", pinned=True, times=3),
    Scenario("upload-64MiB", load="put", pinned=True, times=3),
    Scenario("slow-reader", load="slow"),
)
