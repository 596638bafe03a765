"""What can go wrong with the store, each with its reason, what to do next, and the HTTP status that tells it. Pure."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot do what was asked. ``status`` is what the admin surface answers with."""

    code = "store"
    status = 500

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        self.what, self.why, self.next_step = what, why, next_step
        super().__init__(": ".join(part for part in (what, why) if part))


class StoreUnavailable(StoreError):
    """No member of the etcd answers, or none that has a leader. Nothing is written; what is in force stays."""

    code = "store-unavailable"
    status = 503


class StoreDenied(StoreError):
    """The etcd does not know who asks, or does not let them: a user, password or role is wrong."""

    code = "store-denied"
    status = 502


class Conflict(StoreError):
    """Somebody else changed the object since it was read. Nothing of the request's batch is written."""

    code = "conflict"
    status = 409


class TooLarge(StoreError):
    """An object or a request is larger than etcd takes."""

    code = "too-large"
    status = 413


class NotFound(StoreError):
    """An object that is not in the store."""

    code = "not-found"
    status = 404


class NoStore(StoreError):
    """This control plane reads a directory: there is nothing to write to."""

    code = "no-store"
    status = 409


class BadRequest(StoreError):
    """A request that is none."""

    code = "bad-request"
    status = 400


class Compacted(StoreError):
    """The revision that was asked for is gone; the follower lists again. Never shown to users."""

    code = "compacted"

    def __init__(self, revision: int = 0) -> None:
        super().__init__("the revision is compacted", f"the oldest is {revision}" if revision else "")
        self.revision = revision
