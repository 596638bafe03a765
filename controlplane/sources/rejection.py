"""Why a document is not an object: raised inside conversion, caught at its border, shown to the author."""

from __future__ import annotations


class RejectedError(Exception):
    """A document cannot be used.  ``code`` is stable, ``path`` is the field at fault ('' for the whole object)."""

    def __init__(self, code: str, message: str, path: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = path
