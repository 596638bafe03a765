"""What is asked of each path."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """One row group of the table.

    `service` is what the client connects to: "web" (HTTP, two endpoints on this node), "far" (the same on the other
    node) or "tcp" (a port that is not HTTP). `load` says who asks and how: "requests" is wrk, with `mix` telling
    whether requests change endpoint; "get", "put" and "slow" move large bodies.
    """

    name: str
    service: str = "web"
    load: str = "requests"
    mix: str = "switch"
    close: bool = False


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("http-switch"),
    Scenario("http-stay", mix="stay"),
    Scenario("http-two-nodes", service="far"),
    Scenario("l4", service="tcp", mix="stay"),
    Scenario("short-connections", close=True),
    Scenario("body-64MiB", load="get"),
    Scenario("upload-64MiB", load="put"),
    Scenario("slow-reader", load="slow"),
)
