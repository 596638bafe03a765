"""Errors that end the control plane, each with its exit status and what to do next."""

from __future__ import annotations


class ControlPlaneError(Exception):
    """The program cannot go on. ``status`` is the exit status; the message is for the person who started it."""

    status = 1


class UsageProblem(ControlPlaneError):
    """Something about the way in which the program was started: a flag, a directory, an address."""

    status = 2


class AddressInUse(ControlPlaneError):
    """Another process has the address."""

    status = 3
