"""The agent's typed errors. Each says what happened, why, and what to do next."""

from __future__ import annotations


class AgentError(Exception):
    """Base of everything that the agent raises on purpose.

    `what` happened, `why` it did, and what a person can do next; each may be empty except the first.
    """

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        self.what, self.why, self.next_step = what, why, next_step
        super().__init__(what + (f": {why}" if why else "") + (f"; {next_step}" if next_step else ""))


class SettingsError(AgentError):
    """The command line or environment asks for something impossible. The process ends with status 2."""


class ResourceError(AgentError):
    """An xDS resource cannot be understood; it alone is refused, by name and with this reason."""


class CapacityError(AgentError):
    """Something does not fit a limit of the kernel's tables; it is rejected by name, never cut."""


class LayoutError(AgentError):
    """Bytes from a map do not have the size or values that the ABI says: the object and the agent do not fit."""


class ApplyError(AgentError):
    """A step of a plan failed in the kernel. The steps before it stand, and each of them is safe by itself."""


class NotRunningError(AgentError):
    """Pinned maps of a node were asked for and are not there: no agent has set this node up."""


class WaypointError(AgentError):
    """An Envoy of the node was given a configuration that it must not run with; it is ended and not started again."""


class RuleError(AgentError):
    """A rule in the maps cannot be read: who wrote it and who reads it are of different builds."""
