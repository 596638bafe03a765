"""The smuggling corpus: what one connection sends so that two parsers disagree where a request ends.

Each attack is made for a server's host and with a mark that all its targets begin with: `MARK/evil` is what its author
hopes to have served, `MARK/next` an honest request behind. What the bytes mean `framing.meaning` says, not this page.
"""

from __future__ import annotations

import random
from typing import Final

from tests.support.hostile_heads import JOINED

_BLANKS: Final = (b"\t", b"\x0b", b"\x0c", b"\x00", b"\x7f", b"\xa0", b"\r", b"\n", b"\x85")


def request(host: bytes, target: bytes, *lines: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """A request with these header lines behind Host, and a body as it is."""
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"Host: " + host, *lines]) + b"\r\n\r\n" + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers + b"\r\n"


def attacks(host: bytes, mark: bytes) -> dict[str, bytes]:
    """Every attack by name."""
    evil = request(host, mark + b"/evil")
    then = request(host, mark + b"/next")
    size = b"Content-Length: %d" % len(evil)
    te = b"Transfer-Encoding: chunked"

    def post(*lines: bytes, body: bytes = b"", target: bytes = b"/post", method: bytes = b"POST") -> bytes:
        return request(host, mark + target, *lines, method=method, body=body)

    whole = chunked(evil)
    found = {
        "honest": then,
        "honest, a pipeline": then + evil + then,
        "honest, a body that looks like a request": post(size, body=evil) + then,
        "honest, chunks that look like a request": post(te, body=whole) + then,
        # ---- the two lengths
        "CL.TE": post(b"Content-Length: %d" % (5 + len(evil)), te, body=b"0\r\n\r\n" + evil) + then,
        "TE.CL": post(te, b"Content-Length: 4", body=chunked(evil)) + then,
        "CL.TE, none by length": post(b"Content-Length: 0", te, body=whole) + then,
        "TE.CL, apart": post(te, *[b"X-%d: y" % n for n in range(20)], b"Content-Length: 4", body=whole) + then,
        "TE.CL on GET": post(te, b"Content-Length: 4", body=whole, method=b"GET") + then,
        "CL.0": post(size, body=evil, method=b"GET") + then,
        "CL.0 of HEAD": post(size, body=evil, method=b"HEAD") + then,
        "CL.0 of OPTIONS": post(size, body=evil, method=b"OPTIONS") + then,
        "CL.0 of DELETE": post(size, body=evil, method=b"DELETE") + then,
        "CL.0 of TRACE": post(size, body=evil, method=b"TRACE") + then,
        "no length at all": post() + evil,
        "PUT without length": post(method=b"PUT", body=evil) + then,
        # ---- one length, said badly
        "CL twice, the same": post(size, size, body=evil) + then,
        "CL twice, 0 last": post(size, b"Content-Length: 0", body=evil) + then,
        "CL twice, 0 first": post(b"Content-Length: 0", size, body=evil) + then,
        "CL twice, apart": post(size, b"X: y", b"content-length: 0", body=evil) + then,
        "length behind a folded line": post(b"X: y\r\n " + size, body=evil) + then,
        "length in front of a folded line": post(b"Content-Length: 0\r\n %d" % len(evil), body=evil) + then,
        "length folded away": post(b"Content-Length:\r\n\t%d" % len(evil), body=evil) + then,
        "CL of another name by underscore": post(b"Content_Length: %d" % len(evil), body=evil) + then,
        "CL in front of the colon a blank": post(b"Content-Length : %d" % len(evil), body=evil) + then,
        "CL in front of the colon a tab": post(b"Content-Length\t: %d" % len(evil), body=evil) + then,
        "CL with a line of blanks": post(size, b" ", body=evil) + then,
        "CL too large": post(b"Content-Length: 99999999999999999999", body=evil) + then,
        "CL that wraps at 2^32": post(b"Content-Length: %d" % (len(evil) + 2**32), body=evil) + then,
        "CL that wraps at 2^64": post(b"Content-Length: %d" % (len(evil) + 2**64), body=evil) + then,
        "CL larger than what comes": post(b"Content-Length: %d" % (len(evil) + 300), body=evil),
        # ---- chunks
        "chunk size that wraps": post(te, body=b"1" + b"0" * 15 + b"5\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk size of 2^64": post(te, body=b"10000000000000000\r\n0\r\n\r\n" + evil) + then,
        "chunk size with 0x": post(te, body=b"0x5\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk size with a sign": post(te, body=b"+5\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk size negative": post(te, body=b"-1\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk size with underscore": post(te, body=b"1_0\r\nabcdefghijklmnop\r\n0\r\n\r\n" + evil) + then,
        "chunk size with blanks behind": post(te, body=b"5  \r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk size with blanks in front": post(te, body=b" 5\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk size empty": post(te, body=b"\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk size in many zeros": post(te, body=b"0000000005\r\nabcde\r\n000\r\n\r\n" + evil) + then,
        "chunk size of zeros without end": post(te, body=b"0" * 300 + b"5\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk line by LF": post(te, body=b"5\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk line by CR": post(te, body=b"5\rabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk line by CR CR LF": post(te, body=b"5\r\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "chunk without its line end": post(te, body=b"5\r\nabcde0\r\n\r\n" + evil) + then,
        "chunk that ends by LF": post(te, body=b"5\r\nabcde\n0\r\n\r\n" + evil) + then,
        "chunk longer than it says": post(te, body=b"5\r\nabcdefg\r\n0\r\n\r\n" + evil) + then,
        "chunk that ends by two other bytes": post(te, body=b"5\r\nabcdeXX0\r\n\r\n" + evil) + then,
        "extension": post(te, body=b"5;a=b\r\nabcde\r\n0;x\r\n\r\n" + evil) + then,
        "extension with a quoted line end": post(te, body=b'5;a="\r\n0\r\n\r\n' + evil) + then,
        "extension by LF": post(te, body=b"5;a\nabcde\r\n0\r\n\r\n" + evil) + then,
        "extension with CR": post(te, body=b"5;a\rb\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "extension with NUL": post(te, body=b"5;a\0b\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "extension, very long": post(te, body=b"5;" + b"a" * 20000 + b"\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "extension that hides the next chunk": post(te, body=b"5;\n0\r\n\r\nabcde\r\n0\r\n\r\n" + evil) + then,
        "last chunk's line by LF": post(te, body=b"5\r\nabcde\r\n0\n\r\n" + evil) + then,
        "last chunk by LF LF": post(te, body=b"5\r\nabcde\r\n0\n\n" + evil) + then,
        "last chunk ends by LF": post(te, body=b"5\r\nabcde\r\n0\r\n\n" + evil) + then,
        "trailers": post(te, body=chunked(b"abcde", trailers=b"X-T: y\r\n")) + then,
        "trailers of framing": post(te, body=chunked(b"ab", trailers=b"Content-Length: 5\r\n" + te + b"\r\n")) + then,
        "trailers that name a host": post(te, body=chunked(b"a", trailers=b"Host: other\r\nX-Envoy-A: b\r\n")) + then,
        "trailer without colon": post(te, body=chunked(b"abcde", trailers=evil)) + then,
        "trailer folded": post(te, body=chunked(b"abcde", trailers=b"A: b\r\n c: d\r\n")) + then,
        "trailer by LF": post(te, body=chunked(b"abcde", trailers=b"A: b\n")) + then,
        "trailer with a blank before its colon": post(te, body=chunked(b"abcde", trailers=b"A : b\r\n")) + then,
        "trailer with NUL": post(te, body=chunked(b"abcde", trailers=b"A: \0\r\n")) + then,
        "chunks, the last is missing": post(te, body=b"5\r\nabcde\r\n"),
        "chunks on GET": post(te, body=whole, method=b"GET") + then,
        "chunks on HEAD": post(te, body=whole, method=b"HEAD") + then,
        "coding with a parameter": post(b"Transfer-Encoding: chunked;q=1", body=whole) + then,
        "trailers are announced": post(te, b"Trailer: X-T", body=chunked(b"abc", trailers=b"X-T: 1\r\n")) + then,
        # ---- lines
        "LF only": (then[:-4] + b"\r\n" + b"\r\n").replace(b"\r\n", b"\n") + evil,
        "LF in front of a header": request(host, mark + b"/post", b"X: y\n" + size, body=evil) + then,
        "CR in front of a header": request(host, mark + b"/post", b"X: y\r" + size, body=evil) + then,
        "NUL in front of a header": request(host, mark + b"/post", b"X: y\0" + size, body=evil) + then,
        "head ended by LF LF": request(host, mark + b"/post", b"X: y\n\n" + evil) + then,
        "head ended by CR LF LF": request(host, mark + b"/post", b"X: y\r\n\n" + evil) + then,
        "head ended by LF CR LF": request(host, mark + b"/post", b"X: y\n\r\n" + evil) + then,
        "head ended by CR CR": request(host, mark + b"/post", b"X: y\r\r" + evil) + then,
        "a line of one blank ends the head": request(host, mark + b"/post", b"X: y", b" ", evil) + then,
        "NUL in a name": request(host, mark + b"/post", b"X\0: y") + evil,
        "NUL in the target": request(host, mark + b"/po\0st") + evil,
        "CR LF in front": b"\r\n" + then + evil,
        "LF in front": b"\n" + then + evil,
        "a byte order mark in front": b"\xef\xbb\xbf" + then + evil,
        "folded Host": request(host, mark + b"/post", b"X: y\r\n" + b" Host: other") + evil,
        "folded with nothing in front": b"GET " + mark + b"/post HTTP/1.1\r\n Host: " + host + b"\r\n\r\n" + evil,
        "folded start": b"GET " + mark + b"/post\r\n HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" + evil,
        "a target of two lines": request(host, mark + b"/a HTTP/1.1\r\nX: y\r\n\r\nGET " + mark + b"/b"),
        "target with LF": request(host, mark + b"/a HTTP/1.1\nHost: " + host + b"\n\nGET " + mark + b"/b"),
        "a name without a value": request(host, mark + b"/post", b"X") + evil,
        "an empty name": request(host, mark + b"/post", b": y") + evil,
        "a header of 20 KiB": request(host, mark + b"/post", b"X: " + b"y" * 20480) + evil,
        "a header of 70 KiB": request(host, mark + b"/post", b"X: " + b"y" * 71680) + evil,
        "200 headers": request(host, mark + b"/post", *[b"X: y"] * 200) + evil,
        # ---- who is meant
        "absolute form": request(host, b"http://other" + mark + b"/abs") + evil,
        "absolute form of the same host": request(host, b"http://" + host + mark + b"/abs") + evil,
        "authority form": request(host, host + b":80") + evil,
        "asterisk": request(host, b"*", method=b"OPTIONS") + evil,
        "CONNECT": request(host, host + b":80", method=b"CONNECT") + evil,
        "Host twice": request(host, mark + b"/post", b"Host: other") + evil,
        "Host twice, the same": request(host, mark + b"/post", b"hOST: " + host) + evil,
        "Host of two": request(host + b", other", mark + b"/post") + evil,
        "Host with a blank before its colon": b"GET " + mark + b"/p HTTP/1.1\r\nHost : " + host + b"\r\n\r\n" + evil,
        "no Host": b"GET " + mark + b"/post HTTP/1.1\r\nX: y\r\n\r\n" + evil,
        "Host with a path": request(host + b"/evil", mark + b"/post") + evil,
        "Host of nobody": request(b"nobody", mark + b"/post", size, method=b"POST", body=evil) + then,
        "Host of nobody, chunks": request(b"nobody", mark + b"/post", te, method=b"POST", body=whole) + then,
        "Host of nobody, pipelined": request(b"nobody", mark + b"/post") + then,
        # ---- versions and other protocols
        "HTTP/1.0": (b"GET " + mark + b"/old HTTP/1.0\r\nHost: " + host + b"\r\n\r\n") + evil,
        "HTTP/1.0 kept alive": then[:-2].replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n\r\n" + evil,
        "HTTP/1.0 with chunks": b"POST %s/old HTTP/1.0\r\nHost: %s\r\n%s\r\n\r\n%s%s" % (mark, host, te, whole, then),
        "HTTP/1.2": b"GET " + mark + b"/new HTTP/1.2\r\nHost: " + host + b"\r\n\r\n" + evil,
        "HTTP/2 by name": b"GET " + mark + b"/new HTTP/2.0\r\nHost: " + host + b"\r\n\r\n" + evil,
        "HTTP/0.9": b"GET " + mark + b"/old\r\n" + evil,
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" + evil,
        "HTTP/2 preface behind a request": then + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + evil,
        "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + evil,
        "PROXY": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + evil,
        "Upgrade to WebSocket": request(
            host, mark + b"/ws", b"Connection: Upgrade", b"Upgrade: websocket",
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Sec-WebSocket-Version: 13",
        ) + evil,
        "Upgrade to h2c": request(
            host, mark + b"/h2c", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"
        ) + evil,
        "Upgrade without Connection": request(host, mark + b"/ws", b"Upgrade: h2c") + evil,
        "Connection names the length": post(b"Connection: content-length", size, body=evil) + then,
        "Connection names the coding": post(b"Connection: transfer-encoding", te, body=whole) + then,
        "Connection close, and more behind": request(host, mark + b"/last", b"Connection: close") + evil,
        "Connection close with a body, and more behind": post(b"Connection: close", size, body=evil) + then,
        # ---- expectations
        "Expect, body at once": post(b"Expect: 100-continue", size, body=evil) + then,
        "Expect on GET": post(b"Expect: 100-continue", size, body=evil, method=b"GET") + then,
        "Expect without a body": post(b"Expect: 100-continue") + evil,
        "Expect with none": post(b"Expect: 100-continue", b"Content-Length: 0") + evil,
        "Expect twice": post(b"Expect: 100-continue", b"Expect: 100-continue", size, body=evil) + then,
        "Expect of something else": post(b"Expect: y", size, body=evil) + then,
        "Expect misspelt": post(b"Expect: y 100-continue", size, body=evil) + then,
        "Expect with chunks": post(b"Expect: 100-continue", te, body=whole) + then,
        # ---- answered before it is read
        "early answer": post(size, body=evil, target=b"/early") + then,
        "early answer, chunks": post(te, body=whole, target=b"/early") + then,
        "early answer to GET": post(size, body=evil, target=b"/early", method=b"GET") + then,
        "early answer, never whole": post(b"Content-Length: %d" % (len(evil) + 99), body=evil, target=b"/early"),
        "early answer, long": post(b"Content-Length: 30000", body=(evil * 999)[:30000], target=b"/early") + then,
        # ---- methods that are not
        "method with a colon": b"X: y " + mark + b"/a HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" + evil,
        "method in lower case": request(host, mark + b"/a", method=b"get") + evil,
        "method of nobody": request(host, mark + b"/a", method=b"BREW") + evil,
        "two requests in one line": b"GET %s/a GET %s/evil HTTP/1.1\r\nHost: %s\r\n\r\n" % (mark, mark, host) + then,
    }  # fmt: skip
    for text in _CODINGS:
        found[f"coding {text!r}"] = post(text, body=whole) + then
        found[f"coding {text!r} with a length"] = post(text, size, body=whole) + then
    for value in _LENGTHS:
        found[f"length {value!r}"] = post(b"Content-Length:" + value.replace(b"N", b"%d" % len(evil)), body=evil) + then
    return found


_CODINGS: Final = (
    b"Transfer-Encoding: Chunked", b"transfer-encoding:chunked", b"Transfer-Encoding:  chunked",
    b"Transfer-Encoding: chunked ", b"Transfer-Encoding:\tchunked", b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunkedx", b"Transfer-Encoding: identity",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked,", b'Transfer-Encoding: "chunked"', b"Transfer-Encoding: 'chunked'",
    b"Transfer-Encoding:", b"Transfer-Encoding: chunk ed", b"Transfer-Encoding: ch\xc5\xaainked",
    b"Transfer_Encoding: chunked", b"Transfer-Encoding\0: chunked", b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked", b" Transfer-Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: x\r\n chunked",
    *(b"Transfer-Encoding: " + blank + b"chunked" for blank in _BLANKS),
    *(b"Transfer-Encoding: chunked" + blank for blank in _BLANKS),
    *(b"Transfer-Encoding" + blank + b": chunked" for blank in _BLANKS),
)  # fmt: skip

_LENGTHS: Final = (
    b" +N",
    b" -N", b" -0", b" 0N", b" 000000000000000000N", b" 0xN", b" N, N", b" N,N", b" N,", b" ,N", b" N, 0",
    b" 0, N", b" N 0",
    b" 0 N", b" N.0", b" Ne0", b" N_", b' "N"', b" N;", b" N\t", b"\tN", b"  N", b"N", b" N ", b"", b" ",
    b" \xd9\xa1", b" N\0", b" \0N", b" \x0bN", b" N\x0b", b" N\r", b" \rN", b" infinity", b" 1e1",
)  # fmt: skip
"""What may stand behind `Content-Length:`; N is the true length."""


def mutated(chance: random.Random, host: bytes, mark: bytes) -> bytes:
    """A random attack: parts of the corpus, put together and changed in a few bytes."""
    every = list(attacks(host, mark).values())
    data = bytearray(b"".join(chance.choice(every) for _ in range(chance.randint(1, 3)))[:6000])
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        at = chance.randrange(len(data))
        kind = chance.randrange(6)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.randint(1, 4)]
        elif kind == 2:
            data[at:at] = chance.choice((b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b"0\r\n\r\n", b"\r\n\r\n", b","))
        elif kind == 3:
            ends = [i for i in range(len(data)) if data[i : i + 2] == b"\r\n"] or [at]
            at = chance.choice(ends)
            data[at : at + 2] = chance.choice((b"\n", b"\r", b"\r\n ", b"\r\r\n", b"\n\r", b"\r\n\r\n"))
        elif kind == 4:
            digits = [i for i in range(len(data)) if chr(data[i]).isdigit()]
            at = chance.choice(digits or [at])
            data[at : at + 1] = b"%d" % chance.randrange(120)
        else:
            line = b"\r\n" + chance.choice((
                b"Transfer-Encoding: chunked", b"Content-Length: 5", b"Content-Length: 0", b"Host: " + host,
                b"Connection: close", b"Expect: 100-continue", *(name + b": a" for name in JOINED[:3]),
            ))  # fmt: skip
            ends = [i for i in range(len(data)) if data[i : i + 2] == b"\r\n"] or [at]
            at = chance.choice(ends)
            data[at:at] = line
    return bytes(data)
