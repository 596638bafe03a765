"""What a request gets that nobody can forward: a status, and a response that names its reason (pure)."""

from __future__ import annotations

from nodeagent.abi.numbers import Reason

_STATUS: dict[int, int] = {
    Reason.SPLIT_HEAD: 400,
    Reason.HEAD_TOO_LONG: 431,
    Reason.TOO_MANY_LINES: 431,
    Reason.BAD_METHOD: 501,
    Reason.BAD_PATH: 400,
    Reason.PATH_NORMAL: 501,
    Reason.BAD_VERSION: 505,
    Reason.BAD_LINE: 400,
    Reason.BAD_NAME: 400,
    Reason.BAD_VALUE: 400,
    Reason.BAD_HOST: 400,
    Reason.NO_HOST: 400,
    Reason.BAD_LENGTH: 400,
    Reason.CHUNKED_REQUEST: 501,
    Reason.UPGRADE: 501,
    Reason.DUPLICATE: 501,
    Reason.PROXY_HEADER: 501,
    Reason.NO_VHOST: 404,
    Reason.NO_ROUTE: 404,
}
"""Of a refusal; whatever is not named here is 503: there is a rule, and it cannot be carried out here."""

_PHRASES = {
    400: "Bad Request", 404: "Not Found", 408: "Request Timeout", 431: "Request Header Fields Too Large",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip


def status_of(reason: int) -> int:
    """The status of home's own answer to a request that nobody can forward for this `up_reason`."""
    return _STATUS.get(reason, 503)


def refusal(status: int, reason: str, *, close: bool, body: bool = True) -> bytes:
    """A whole response that names its reason."""
    text = f"underpass: {reason}\n".encode()
    ending = b"connection: close\r\n" if close else b""
    return (
        b"HTTP/1.1 %d %s\r\ncontent-type: text/plain\r\nx-underpass-reason: %s\r\ncontent-length: %d\r\n%s\r\n"
        % (status, _PHRASES[status].encode(), reason.encode(), len(text), ending)
    ) + (text if body else b"")
