"""The core as the verifier accepted it decides as libcore.so does: on the whole corpus and on random changes of it.

Every difference would be a request that home and `underpass explain` see otherwise than the kernel.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from nodeagent.abi.numbers import CLUSTER_SLOTS, HEAD_MAX, HOST_MAX, WEIGHTS, ActionKind, Lb, Reason
from nodeagent.abi.records import Action, Cluster, Weight
from nodeagent.bpf import objects
from nodeagent.bpf.errors import ObjectFileError
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.cache.resources import PathKind, PathMatch, RouteMatch, StringKind, ValueMatch
from nodeagent.core import in_kernel
from nodeagent.core.libcore import HeadReader, RouteProgram
from nodeagent.intent.packing import assemble
from nodeagent.intent.vhost import compile_matches
from nodeagent.node.programs import OBJECTS
from tests.support import core_memory as m
from tests.support.core_in_kernel import OBJECT, CoreInKernel, NativeCore
from tests.support.core_memory import core
from tests.support.hostile_heads import CANONICAL, corpus, get
from tests.unit.kernel.test_response import NEXT, STREAMS

pytestmark = pytest.mark.needs("core")

MUTATED_HEADS, MUTATED_RESPONSES = 60_000, 20_000


@pytest.fixture(scope="module")
def kernel() -> Iterator[CoreInKernel]:
    loaded = CoreInKernel(LinuxKernel())
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def native(kernel: CoreInKernel) -> Iterator[NativeCore]:
    made = NativeCore(core(), kernel.layout)
    yield made
    made.close()


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Some bytes changed, removed, inserted, or the whole cut."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, kind = chance.randrange(len(out) + 1), chance.random()
        if kind < 0.4:
            out[at : at + 1] = bytes([chance.choice((chance.randrange(256), *b"\r\n :./?\0"))])
        elif kind < 0.6:
            del out[at : at + chance.randint(1, 8)]
        elif kind < 0.9:
            out[at:at] = chance.choice(
                (b"\r\n", b"Host: b\r\n", b"Content-Length: 3\r\n", b" ", b"//", b"x" * 70, b"\n")
            )
        else:
            del out[at:]
    return bytes(out)


_UNDER_A = PathMatch(PathKind.PREFIX, "/a")
PROGRAM = [
    RouteMatch(PathMatch(PathKind.EXACT, "/a/b"), (ValueMatch("cookie", StringKind.REGEX, "(.*;)?c=d(;.*)?"),)),
    RouteMatch(PathMatch(PathKind.REGEX, "/[a-m]+/[0-9]*"), (ValueMatch(":method", StringKind.EXACT, "DELETE"),)),
    RouteMatch(PathMatch(PathKind.SEPARATED, "/x"), (ValueMatch("x_user", StringKind.PRESENT, invert=True),)),
    RouteMatch(
        _UNDER_A, (ValueMatch("x", StringKind.PREFIX, "a"), ValueMatch("user-agent", StringKind.CONTAINS, "curl"))
    ),
    RouteMatch(_UNDER_A, (ValueMatch("x", StringKind.SUFFIX, "b", True),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("x_user", StringKind.PRESENT),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch(":method", StringKind.EXACT, "POST"),)),
    RouteMatch(PathMatch(PathKind.EXACT, "/"), ()),
]
MATCHED = [
    get(b"/a/b", b"Cookie: a=b;c=d"),
    get(b"/ab", b"X: ab", b"User-Agent: curl/8"),
    get(b"/ab", b"X: AB"),
    get(b"/x/y?z"),
    get(b"/x", b"x_user: b"),
    get(b"/a", b"X: a", b"x: b"),
    get(b"/none"),
    b"DELETE /abc/12 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /abc HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
]


def program() -> bytes:
    compiled = compile_matches(PROGRAM)
    assert compiled.image is not None
    return bytes(assemble(compiled.image, [Action(route=i + 1) for i in range(len(PROGRAM))]))


def test_heads_and_routes(kernel: CoreInKernel, native: NativeCore) -> None:
    chance, data = random.Random(20), program()
    kernel.program[: len(data)] = data
    image = RouteProgram(data)
    good = [*CANONICAL.values(), *MATCHED]
    cases = [*corpus(), *MATCHED, *(get()[:k] for k in range(len(get())))]
    cases += [mutated(chance, chance.choice(good)) for _ in range(MUTATED_HEADS)]
    reasons, routes = set(), set()
    for case in cases:
        case = case[:HEAD_MAX]
        found = kernel.head(case)
        assert found == native.head(case), case
        reasons.add(found[0])
        if found[0] == Reason.OK:
            route = kernel.match()
            assert route == native.match(image), case
            routes.add(route)
    # the cases are worth their time
    assert {
        Reason.OK, Reason.SPLIT_HEAD, Reason.HEAD_TOO_LONG, Reason.TOO_MANY_LINES, Reason.BAD_METHOD, Reason.BAD_PATH,
        Reason.PATH_NORMAL, Reason.BAD_VERSION, Reason.BAD_LINE, Reason.BAD_NAME, Reason.BAD_VALUE, Reason.BAD_HOST,
        Reason.NO_HOST, Reason.BAD_LENGTH, Reason.CHUNKED_REQUEST, Reason.UPGRADE, Reason.DUPLICATE,
        Reason.PROXY_HEADER,
    } == reasons  # fmt: skip
    assert routes >= {*range(len(PROGRAM)), -Reason.NO_ROUTE, -Reason.DUPLICATE}


def test_domains(kernel: CoreInKernel) -> None:
    chance, reader = random.Random(21), HeadReader(core())
    for _ in range(500):
        labels = ["".join(chance.choices("abz-_9", k=chance.randint(1, 9))) for _ in range(chance.randint(1, 12))]
        data = get(host=b"Host: " + ".".join(labels)[: HOST_MAX - 1].encode())
        if kernel.head(data)[0]:
            continue
        kernel.run("domains")
        raw, count = kernel.get("domains"), kernel.number("n_domains")
        assert reader.parse(data).reason == 0
        assert [raw[k * HOST_MAX : (k + 1) * HOST_MAX] for k in range(count)] == reader.domains()


def test_responses(kernel: CoreInKernel) -> None:
    chance = random.Random(22)
    streams = list(STREAMS.values())
    states = set()
    for number in range(len(streams) + MUTATED_RESPONSES):
        stream = streams[number] if number < len(streams) else chance.choice(streams)
        data = stream.data + NEXT
        if number >= len(streams):
            data = mutated(chance, data)
        start, at = chance.getrandbits(32), 0
        ours, theirs = m.Response(), m.Response()
        m.begin(ours, start, stream.head)
        m.begin(theirs, start, stream.head)
        while at < len(data) and m.wants(ours):
            piece = data[at : at + chance.choice((1, 5, 16, 17, 40, 300, 1000))]
            taken = kernel.feed(ours, piece)
            assert taken == m.feed(theirs, piece), (data, at, piece)
            assert ours.raw() == theirs.raw(), (data, at, piece)
            if not taken:
                break
            at = (ours.next - start) & m.MASK
            states.add((ours.state, ours.step))
    assert len(states) > 18, sorted(states)


def test_choices(kernel: CoreInKernel) -> None:
    chance = random.Random(23)
    for _ in range(500):
        total, to = 0, []
        for k in range(chance.randint(1, WEIGHTS)):
            total += chance.choice((0, 1, 10, 1 << 16))
            to.append(Weight(total, k + 1))
        action = Action(1, ActionKind.CLUSTERS, 0, len(to), 0, total, tuple(to)).pack()
        n = chance.choice((0, 1, 2, 3, 100, CLUSTER_SLOTS))
        lb, turn = chance.choice(list(Lb)), chance.choice((0, n, 1 << 31))
        slots = tuple(range(1, n + 1))
        memory = bytearray(Cluster(n=n, lb=lb, turn=turn, live=chance.randint(0, 1), slot=slots).pack())
        kernel.set("action", action)
        kernel.set("cluster", bytes(memory))
        for _ in range(4):
            number = chance.getrandbits(32)
            kernel.set("random", number)
            kernel.run("choose")
            ends = kernel.get("endpoints")
            found = (kernel.number("result"), int.from_bytes(ends[:4], "little"), int.from_bytes(ends[4:], "little"))
            assert found == core().balance(memory, number)
            assert kernel.number("lease") == core().action_cluster(action, number)
            assert kernel.get("cluster")[: len(memory)] == bytes(memory)


def test_wire_arithmetic(kernel: CoreInKernel) -> None:
    chance, size = random.Random(24), kernel.layout["up_shift"][0]
    for _ in range(1000):
        client, upstream = m.Conn(), m.Conn()
        for memory in (client, upstream):
            memory.memory[:] = chance.randbytes(memory.size)
        kernel.set("client", client.raw())
        kernel.set("upstream", upstream.raw())
        seq, ack, te, lease, up, down = (chance.getrandbits(32) for _ in range(6))
        for name, value in (("seq", seq), ("ack", ack), ("te", te), ("lease", lease), ("n", up), ("random", down)):
            kernel.set(name, value)
        kernel.run("wire")
        m.leave_home(client, seq, ack, te)
        m.lend(upstream, client, seq, ack, te, lease)
        shifts = [m.shift(m.OUTWARD, client, upstream), m.shift(m.INWARD, u=upstream)]
        assert bool(kernel.number("idle")) == m.idle(upstream)
        m.freeze(upstream, seq + up, ack + down, te)
        shifts += [m.shift(m.OWNER_OUT, u=upstream), m.shift(m.OWNER_IN, u=upstream)]
        m.come_home(client, seq + up, ack + down, te)
        shifts += [m.shift(m.HOME_OUT, client), m.shift(m.HOME_IN, client)]
        assert kernel.get("client")[: client.size] == client.raw()
        assert kernel.get("upstream")[: upstream.size] == upstream.raw()
        raw = kernel.get("shift")
        for k, x in enumerate(shifts):
            at, fields = k * size, kernel.layout["up_shift"][1]
            theirs = [
                int.from_bytes(raw[at + o : at + o + s][: 4 if o < 16 else 1], "little") for o, s in fields.values()
            ]
            assert theirs == [x.seq, x.ack, x.tsv, x.tse, x.start, x.to]


def test_it_is_no_part_of_a_node() -> None:
    """Loaders take the objects of kernel/build; the wheel ships these apart, for `underpass test equivalence`."""
    assert OBJECT.name not in OBJECTS
    with pytest.raises(ObjectFileError):
        objects.find(OBJECT.name)


def test_the_products_reader_in_the_kernel(kernel: CoreInKernel) -> None:
    """Its offsets are the object's, and it reads what libcore.so reads (`underpass test equivalence`)."""
    for name, offset in (
        ("n", in_kernel.AT_N), ("result", in_kernel.AT_RESULT), ("n_domains", in_kernel.AT_N_DOMAINS),
        ("head", in_kernel.AT_HEAD), ("lines", in_kernel.AT_LINES), ("domains", in_kernel.AT_DOMAINS),
    ):  # fmt: skip
        assert kernel.fields[name][0] == offset, name
    native, reader = HeadReader(core()), in_kernel.KernelHeadReader(core(), LinuxKernel())
    image = RouteProgram(program())
    try:
        for case in [*CANONICAL.values(), *MATCHED, get(b"/", host=b"Host: A.b.c:80")]:
            assert reader.parse(case) == native.parse(case)
            assert reader.header_lines(case) == native.header_lines(case)
            assert reader.has_port == native.has_port
            assert reader.host() == native.host()
            assert reader.match(image) == native.match(image)
            assert reader.domains() == native.domains()
    finally:
        reader.close()
