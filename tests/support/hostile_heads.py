"""Request heads that two readers could read differently, and what the core must say of each.

`ENVOY_58`: the requests that were put to Envoy 1.40 (what it answered stands in the reference page on HTTP), with the
core's own verdict. `CLASSES`: by class of published weaknesses. A verdict other than OK means: left to the home peer,
never reinterpreted.
"""

from __future__ import annotations

from typing import Final

from nodeagent.abi.numbers import HEAD_MAX, HOST_MAX, LINES_MAX, NAME_MAX, Reason

_OK, _R = Reason.OK, Reason
Case = tuple[bytes, Reason]


def get(target: bytes = b"/", *lines: bytes, host: bytes = b"Host: a", version: bytes = b"HTTP/1.1") -> bytes:
    """A GET with these header lines behind Host."""
    head = [b"GET " + target + b" " + version, *([host] if host else []), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    """A POST to / with these header lines behind Host."""
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: a", *lines]) + b"\r\n\r\n" + body


_CHUNKED = b"Transfer-Encoding: chunked"

#: Headers that Envoy 1.40 joins into one line when they come twice (`tests/conformance/test_equivalence.py` asks it).
JOINED: Final = (
    b"accept", b"accept-encoding", b"authorization", b"cache-control", b"content-encoding", b"content-type",
    b"grpc-timeout", b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since",
    b"origin", b"pragma", b"referer", b"user-agent", b"via", b"x-client-trace-id", b"x-forwarded-for",
    b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto", b"x-request-id", b"access-control-request-method",
    b"access-control-request-headers", b"access-control-request-private-network", b"proxy-status",
    b"grpc-accept-encoding", b"cdn-loop",
)  # fmt: skip

ENVOY_58: Final[dict[str, Case]] = {
    "plain": (get(), _OK),
    "LF-only": (b"GET / HTTP/1.1\nHost: a\n\n", _R.BAD_VERSION),
    "bare CR in value": (get(b"/", b"X: a\rb"), _R.BAD_VALUE),
    "NUL in value": (get(b"/", b"X: a\0b"), _R.BAD_VALUE),
    "space before colon": (get(b"/", b"X : a"), _R.BAD_NAME),
    "obs-fold": (get(b"/", b"X: a\r\n b"), _R.BAD_NAME),
    "leading SP header": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", _R.BAD_NAME),
    "no Host": (get(host=b""), _R.NO_HOST),
    "two Host": (get(b"/", b"Host: b"), _R.DUPLICATE),
    "Host trailing dot": (get(host=b"Host: a."), _OK),
    "Host upper": (get(host=b"Host: A"), _OK),
    "absolute-form": (get(b"http://b/x"), _R.BAD_PATH),
    "CL+TE": (post(b"Content-Length: 4", _CHUNKED, body=b"0\r\n\r\n"), _R.CHUNKED_REQUEST),
    "dup CL same": (post(b"Content-Length: 1", b"Content-Length: 1", body=b"x"), _R.BAD_LENGTH),
    "dup CL diff": (post(b"Content-Length: 1", b"Content-Length: 2", body=b"xx"), _R.BAD_LENGTH),
    'CL "1, 1"': (post(b"Content-Length: 1, 1", body=b"x"), _R.BAD_LENGTH),
    "CL +1": (post(b"Content-Length: +1", body=b"x"), _R.BAD_LENGTH),
    "CL 0x1": (post(b"Content-Length: 0x1", body=b"x"), _R.BAD_LENGTH),
    "TE xchunked": (post(b"Transfer-Encoding: xchunked"), _R.CHUNKED_REQUEST),
    "TE chunked,identity": (post(b"Transfer-Encoding: chunked,identity"), _R.CHUNKED_REQUEST),
    "TE \\x0bchunked": (post(b"Transfer-Encoding: \x0bchunked"), _R.BAD_VALUE),
    "TE Chunked case": (post(b"Transfer-Encoding: Chunked", body=b"0\r\n\r\n"), _R.CHUNKED_REQUEST),
    "chunk LF": (post(_CHUNKED, body=b"1\nx\n0\n\n"), _R.CHUNKED_REQUEST),
    "chunk ext bare LF": (post(_CHUNKED, body=b"1;a\nx\r\n0\r\n\r\n"), _R.CHUNKED_REQUEST),
    "chunk size 1_0": (post(_CHUNKED, body=b"1_0\r\nx\r\n0\r\n\r\n"), _R.CHUNKED_REQUEST),
    "chunk trailing garbage": (post(_CHUNKED, body=b"1\r\nxyy\r\n0\r\n\r\n"), _R.CHUNKED_REQUEST),
    "chunk overflow": (post(_CHUNKED, body=b"fffffffffffffffff\r\nx\r\n0\r\n\r\n"), _R.CHUNKED_REQUEST),
    "HTTP/1.0 + TE": (get(b"/", _CHUNKED, version=b"HTTP/1.0"), _R.BAD_VERSION),
    "HTTP/0.9": (b"GET /x\r\n", _R.BAD_PATH),
    "HTTP/1.2": (get(version=b"HTTP/1.2"), _R.BAD_VERSION),
    "lower http": (get(version=b"http/1.1"), _R.BAD_VERSION),
    "method lower": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", _R.BAD_METHOD),
    "method custom": (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", _R.BAD_METHOD),
    "path /a/../b": (get(b"/a/../b"), _R.PATH_NORMAL),
    "path /..;/admin": (get(b"/x/..;/admin"), _R.PATH_NORMAL),
    "path ;a=b": (get(b"/admin;a=b/x"), _R.PATH_NORMAL),
    "path %2f": (get(b"/a%2fb"), _R.PATH_NORMAL),
    "path %2e%2e": (get(b"/a/%2e%2e/b"), _R.PATH_NORMAL),
    "path //": (get(b"/a//b"), _R.PATH_NORMAL),
    "path #frag": (get(b"/a#b"), _R.BAD_PATH),
    "path \\": (get(b"/a\\b"), _R.PATH_NORMAL),
    "path %00": (get(b"/a%00b"), _R.PATH_NORMAL),
    "path 0x80": (get(b"/a\x80b"), _R.BAD_PATH),
    "path *": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", _R.BAD_PATH),
    "path no slash": (get(b"a"), _R.BAD_PATH),
    "path tab": (get(b"/a\tb"), _R.BAD_PATH),
    "underscore hdr": (get(b"/", b"x_user: a"), _OK),
    "empty hdr name": (get(b"/", b": a"), _R.BAD_NAME),
    "hdr name 8bit": (get(b"/", b"x\xe9: a"), _R.BAD_NAME),
    "trailing ws value": (get(b"/", b"X: a "), _R.BAD_VALUE),
    "101 headers": (get(b"/", *[b"X%d: a" % i for i in range(100)]), _R.TOO_MANY_LINES),
    "61KiB header": (get(b"/", b"X: " + b"a" * (61 << 10)), _R.HEAD_TOO_LONG),
    "h2c upgrade": (
        get(b"/", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        _R.UPGRADE,
    ),
    "ws upgrade": (get(b"/", b"Connection: Upgrade", b"Upgrade: websocket"), _R.UPGRADE),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", _R.UPGRADE),
    "x-envoy-* spoof": (get(b"/", b"x-envoy-original-path: /admin"), _R.PROXY_HEADER),
    "Connection: X-Auth strip": (get(b"/", b"Connection: X-Auth", b"X-Auth: a"), _R.UPGRADE),
    "Expect 100 + CL": (post(b"Expect: 100-continue", b"Content-Length: 1"), _OK),
    "GET with CL body": (get(b"/", b"Content-Length: 1") + b"x", _OK),
}

_BS = b"\\"
CLASSES: Final[dict[int, dict[str, Case]]] = {
    1: {
        **{
            f"target {target!r}": (get(target), _R.PATH_NORMAL)
            for target in (
                b"/.",
                b"/..",
                b"/./",
                b"/../",
                b"/a/.",
                b"/a/..",
                b"/a/./b",
                b"/a/../b",
                b"//",
                b"//a",
                b"/a//",
                b"/..?q",
                b"/.?q",
                b"/a/..?q",
                b"/%2e",
                b"/%2E%2e/a",
                b"/a%2Fb",
                b"/a%5cb",
                b"/a" + _BS + b"..",
                b"/a/" + _BS,
                b"/%",
                b"/%zz",
                b"/a%",
                b"/%41",
                b"//a.b/c",
                b"/...//",
            )
        },
        **{
            f"target {target!r} is its own normal form": (get(target), _OK)
            for target in (
                b"/...",
                b"/.a",
                b"/..a",
                b"/a.",
                b"/a..b",
                b"/a.b/",
                b"/a/...",
                b"/?/../a",
                b"/?//",
                b"/?%2e",
            )
        },
    },
    2: {
        f"target {target!r}": (get(target), _R.PATH_NORMAL)
        for target in (b"/;", b"/a;b", b"/..;/a", b"/.;/a", b"/a/..;x=1/b", b"/a;jsessionid=1", b"/a/;/b")
    },
    3: {
        f"target {target!r}": (get(target), _R.BAD_PATH) for target in (b"/#", b"/a#b", b"/a?b#c", b"/?#", b"/a/#/../b")
    },
    4: {
        "absolute http": (get(b"http://b/"), _R.BAD_PATH),
        "absolute HTTPS": (get(b"HTTPS://b/"), _R.BAD_PATH),
        "authority form": (get(b"b:80"), _R.BAD_PATH),
        "Host twice": (get(b"/", b"host: a"), _R.DUPLICATE),
        "Host twice, apart": (get(b"/", b"X: y", b"HOST: b"), _R.DUPLICATE),
        "Host empty": (get(host=b"Host:"), _R.NO_HOST),
        "Host list": (get(host=b"Host: a,b"), _R.BAD_HOST),
        "Host with blank": (get(host=b"Host: a b"), _R.BAD_HOST),
        "Host with userinfo": (get(host=b"Host: u@a"), _R.BAD_HOST),
        "Host with slash": (get(host=b"Host: a/b"), _R.BAD_HOST),
        "Host with percent": (get(host=b"Host: a%2eb"), _R.BAD_HOST),
        "Host with question mark": (get(host=b"Host: a?b"), _R.BAD_HOST),
        "Host with star": (get(host=b"Host: *"), _R.BAD_HOST),
        "Host star suffix": (get(host=b"Host: *.a"), _R.BAD_HOST),
        "Host with letters in the port": (get(host=b"Host: a:8x"), _R.BAD_HOST),
        "Host with two ports": (get(host=b"Host: a:80:80"), _R.BAD_HOST),
        "Host with a long port": (get(host=b"Host: a:100000"), _R.BAD_HOST),
        "Host port only": (get(host=b"Host: :80"), _R.BAD_HOST),
        "Host bracket open": (get(host=b"Host: [::1"), _R.BAD_HOST),
        "Host bracket behind": (get(host=b"Host: [::1]a"), _R.BAD_HOST),
        "Host bracket inside": (get(host=b"Host: a[::1]"), _R.BAD_HOST),
        "Host bracket twice": (get(host=b"Host: [::1]]"), _R.BAD_HOST),
        "Host zone": (get(host=b"Host: [fe80::1%25eth0]"), _R.BAD_HOST),
        "Host too long": (get(host=b"Host: " + b"a" * HOST_MAX), _R.BAD_HOST),
        # more wildcards than are looked up: one of those left out may be the one that matches
        "Host of ten labels": (get(host=b"Host: a.b.c.d.e.f.g.h.i.j"), _R.BAD_HOST),
        "Host of nine labels": (get(host=b"Host: a.b.c.d.e.f.g.h.i"), _OK),
        "Host upper, port": (get(host=b"Host: A.B:8080"), _OK),
        "Host v6, port": (get(host=b"Host: [FD00::1]:80"), _OK),
    },
    5: {
        "Content-Length twice": (post(b"content-length: 1", b"CONTENT-LENGTH: 1", body=b"x"), _R.BAD_LENGTH),
        "Expect of something else": (get(b"/", b"Expect: 200-ok"), _R.UPGRADE),
        "Connection list": (get(b"/", b"Connection: keep-alive, x"), _R.UPGRADE),
        "Connection close, keep-alive": (get(b"/", b"Connection: close, keep-alive"), _R.UPGRADE),
        "Connection empty": (get(b"/", b"Connection:"), _R.UPGRADE),
        "a header that decides nothing, twice": (get(b"/", b"X: a", b"X: b"), _OK),
        "Cookie twice": (get(b"/", b"Cookie: a=b", b"Cookie: c=d"), _OK),
        **{
            f"{name.decode()} twice": (get(b"/", name + b": a", b"X: y", name.title() + b": a"), _R.DUPLICATE)
            for name in JOINED
        },
        "Expect twice": (get(b"/", b"Expect: 100-continue", b"Expect: 100-continue"), _R.DUPLICATE),
        "TE twice": (get(b"/", b"TE: trailers", b"TE: trailers"), _R.DUPLICATE),
    },
    6: {
        "NUL in name": (get(b"/", b"X\0: a"), _R.BAD_NAME),
        "CR in name": (get(b"/", b"X\r: a"), _R.BAD_NAME),
        "LF in name": (get(b"/", b"X\n: a"), _R.BAD_NAME),
        "tab before colon": (get(b"/", b"X\t: a"), _R.BAD_NAME),
        "line without colon": (get(b"/", b"X"), _R.BAD_NAME),
        "LF in value": (get(b"/", b"X: a\nY: b"), _R.BAD_LINE),
        "LF ends the line": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\n\r\n", _R.BAD_LINE),
        "LF ends the head": (b"GET / HTTP/1.1\r\nHost: a\r\n\nGET", _R.BAD_NAME),
        "CR CR LF": (get(b"/", b"X: a\r"), _R.BAD_VALUE),
        "tab in value": (get(b"/", b"X: a\tb"), _R.BAD_VALUE),
        "tab before value": (get(b"/", b"X:\ta"), _R.BAD_VALUE),
        "two blanks before value": (get(b"/", b"X:  a"), _R.BAD_VALUE),
        "blank value": (get(b"/", b"X:  "), _R.BAD_VALUE),
        "DEL in value": (get(b"/", b"X: a\x7fb"), _R.BAD_VALUE),
        "8 bit in value": (get(b"/", b"X: \xc3\xa9"), _R.BAD_VALUE),
        "obs-fold with tab": (get(b"/", b"X: a\r\n\tb"), _R.BAD_NAME),
        "CR LF before the request": (b"\r\n" + get(), _R.BAD_METHOD),
        "two blanks in the request line": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", _R.BAD_PATH),
        "two blanks before the version": (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", _R.BAD_VERSION),
        "blank behind the version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", _R.BAD_VERSION),
        "tab in the request line": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", _R.BAD_METHOD),
        "empty value": (get(b"/", b"X:"), _OK),
        "empty value behind a blank": (get(b"/", b"X: "), _OK),
        "no blank before value": (get(b"/", b"X:a"), _OK),
    },
    7: {
        "TE+CL": (post(_CHUNKED, b"Content-Length: 4"), _R.CHUNKED_REQUEST),
        "TE identity": (post(b"Transfer-Encoding: identity"), _R.CHUNKED_REQUEST),
        "TE empty": (post(b"Transfer-Encoding:"), _R.CHUNKED_REQUEST),
        "TE upper": (post(b"TRANSFER-ENCODING: CHUNKED"), _R.CHUNKED_REQUEST),
        "TE with blank before colon": (post(b"Transfer-Encoding : chunked"), _R.BAD_NAME),
        "TE behind CR": (post(b"X: y\rTransfer-Encoding: chunked"), _R.BAD_VALUE),
        "CL empty": (post(b"Content-Length:"), _R.BAD_LENGTH),
        "CL negative": (post(b"Content-Length: -1"), _R.BAD_LENGTH),
        "CL with underscore": (post(b"Content-Length: 1_0"), _R.BAD_LENGTH),
        "CL with point": (post(b"Content-Length: 1.0"), _R.BAD_LENGTH),
        "CL exponent": (post(b"Content-Length: 1e1"), _R.BAD_LENGTH),
        "CL blank inside": (post(b"Content-Length: 1 0"), _R.BAD_LENGTH),
        "CL comma": (post(b"Content-Length: 1,"), _R.BAD_LENGTH),
        "CL of 16 digits": (post(b"Content-Length: 1000000000000000"), _R.BAD_LENGTH),
        "CL of 2^64": (post(b"Content-Length: 18446744073709551616"), _R.BAD_LENGTH),
        "CL of 15 digits": (post(b"Content-Length: 999999999999999"), _OK),
        "CL with leading zeros": (post(b"Content-Length: 0001", body=b"x"), _OK),
    },
    # what Envoy 1.40 obeys, takes out or writes over, as `underpass test equivalence` found
    10: {
        **{
            f"proxy's {line!r}": (get(b"/", line), _R.PROXY_HEADER)
            for line in (
                b"x-envoy-retry-on: 5xx",
                b"X-Envoy-Max-Retries: 9",
                b"x-envoy-upstream-rq-timeout-ms: 1000",
                b"x-envoy-attempt-count: 7",
                b"x-envoy-internal: true",
                b"X-ENVOY-X: y",
                b"x-forwarded-client-cert: By=a;URI=b",
                b"X-Forwarded-Client-Cert:",
                b"TE: gzip",
                b"te: trailers, deflate",
                b"te:",
            )
        },
        # where it is empty Envoy writes its own
        "empty request id": (get(b"/", b"X-Request-Id:"), _R.PROXY_HEADER),
        "empty forwarded proto": (get(b"/", b"x-forwarded-proto: "), _R.PROXY_HEADER),
        "request id": (get(b"/", b"X-Request-Id: a", b"x-forwarded-proto: https"), _OK),
        "TE trailers": (get(b"/", b"TE: trailers"), _OK),
        "a name that only begins alike": (get(b"/", b"x-envoy: a", b"x-envo: a", b"x-forwarded-client-certs: a"), _OK),
    },
}

LIMITS: Final[dict[str, Case]] = {
    "name at its limit": (get(b"/", b"x" * NAME_MAX + b": a"), _OK),
    "name over its limit": (get(b"/", b"x" * (NAME_MAX + 1) + b": a"), _R.BAD_NAME),
    "lines at their limit": (get(b"/", *[b"X: a"] * (LINES_MAX - 1)), _OK),
    "lines over their limit": (get(b"/", *[b"X: a"] * LINES_MAX), _R.TOO_MANY_LINES),
    "host at its limit": (get(host=b"Host: " + b"h" * (HOST_MAX - 1)), _OK),
    "host at its limit with the longest port": (get(host=b"Host: " + b"h" * (HOST_MAX - 1) + b":65535"), _OK),
    "host over its limit": (get(host=b"Host: " + b"h" * HOST_MAX), _R.BAD_HOST),
    "path to the limit of the head": (get(b"/" + b"p" * (HEAD_MAX - len(get()))), _OK),
    "path over the limit of the head": (get(b"/" + b"p" * (HEAD_MAX - len(get()) + 1)), _R.HEAD_TOO_LONG),
    "value to the limit of the head": (get(b"/", b"X: " + b"v" * (HEAD_MAX - len(get(b"/", b"X: ")))), _OK),
    "value over the limit of the head": (
        get(b"/", b"X: " + b"v" * (HEAD_MAX - len(get(b"/", b"X: ")) + 1)),
        _R.HEAD_TOO_LONG,
    ),
    "path without end": (b"GET /" + b"p" * (2 * HEAD_MAX), _R.HEAD_TOO_LONG),
    "name without end": (b"GET / HTTP/1.1\r\n" + b"x" * (2 * HEAD_MAX), _R.BAD_NAME),
    "value without end": (b"GET / HTTP/1.1\r\nX: " + b"v" * (2 * HEAD_MAX), _R.HEAD_TOO_LONG),
}

CANONICAL: Final[dict[str, bytes]] = {
    "plain": get(),
    "curl": get(b"/a/b?c=d", b"User-Agent: curl/8.5.0", b"Accept: */*", host=b"Host: reviews.default:9080"),
    "options": b"OPTIONS /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "delete": b"DELETE /x/1 HTTP/1.1\r\nhost: A.b\r\nConnection: Keep-Alive\r\n\r\n",
    "patch": b"PATCH / HTTP/1.1\r\nHost: [::1]:80\r\ncontent-length: 10\r\nConnection: close\r\n\r\n",
    "head": b"HEAD /$-_.!*'(),@:&=+~ HTTP/1.1\r\nX-Empty:\r\nHost:a\r\n\r\n",
    "put": b"PUT /?q=%20;// HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
    "trace": b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    "post": post(b"Content-Type: application/json", b"Content-Length: 2", b"x_user: y", b"Cookie: a=b; c=d"),
}


def corpus() -> list[bytes]:
    """Every head above, in one list."""
    found = [data for data, _ in ENVOY_58.values()]
    found += [data for cases in CLASSES.values() for data, _ in cases.values()]
    return [*found, *(data for data, _ in LIMITS.values()), *CANONICAL.values()]
