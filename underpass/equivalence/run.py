"""Tables through all executors: both cores and Envoy, in batches, and the verdicts."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from nodeagent.cache.resources import Forward
from nodeagent.core.in_kernel import KernelHeadReader
from nodeagent.core.libcore import Core, HeadReader
from nodeagent.intent.model import RouteInfo
from underpass.equivalence import compare, corpus
from underpass.equivalence.cores import Executor, kernel_reader
from underpass.equivalence.envoy import EnvoyError, Oracle, RefusedError, binary
from underpass.equivalence.outcome import Judged, Kind, Outcome, Request, Result, Sort
from underpass.equivalence.subjects import Subject, Subjects
from underpass.equivalence.traffic import traffic

#: What a request gets whose cluster does not exist; where the route says otherwise the table is not asked for a split.
_MISSING = 503
#: Tables of one Envoy.
BATCH = 100
#: Punts for which Envoy is not asked: it would answer late, or more than once.
_SLOW = frozenset({"route-fault", "route-mirror"})


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. kernel, envoy: whether to ask that executor where it is there. more: requests at random, a table."""

    seed: int = 1
    kernel: bool = True
    envoy: bool = True
    more: int = 0
    limits: corpus.Limits = field(default_factory=corpus.Limits)


@dataclass(slots=True)
class Results:
    """Everything that was found. `executors`: by name, the version, or why it was not asked (`absent`)."""

    seed: int
    judged: list[Judged] = field(default_factory=list)
    splits: list[tuple[str, str, str]] = field(default_factory=list)  # table, route, difference
    refused: list[tuple[str, str]] = field(default_factory=list)
    executors: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    tables: int = 0
    views: int = 0
    left_out: tuple[str, ...] = ()
    routes: dict[tuple[str, str], RouteInfo] = field(default_factory=dict)  # by table and the route's key

    def count(self, result: Result) -> int:
        """How many requests have this verdict."""
        return sum(item.result is result for item in self.judged)

    @property
    def different(self) -> int:
        """Requests and splits that differ."""
        return self.count(Result.DIFFERENT) + len(self.splits)


#: A table, its requests, and what both cores did with each.
_Decided = tuple[Subject, list[Request], list[Outcome], list[Outcome | None]]
Corpus = Callable[[Subject], Sequence[Request]]


class Cores:
    """The core's readers: loading the one inside the kernel takes longer than many tables. A context manager."""

    def __init__(self, *, kernel: bool = True) -> None:
        self.core = Core()
        self.readers: list[HeadReader] = [HeadReader(self.core)]
        self.absent = ""
        self._kernel: KernelHeadReader | None = None
        if kernel:
            self._kernel, self.absent = kernel_reader(self.core)
        if self._kernel is not None:
            self.readers.append(self._kernel)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unload what was loaded."""
        if self._kernel is not None:
            self._kernel.close()


def run(subjects: Subjects, options: Options, make: Corpus | None = None, cores: Cores | None = None) -> Results:
    """Try every table with the requests that `make` gives for it (the covering corpus).

    cores: those of an earlier run, to be used again. Raises EnvoyError when Envoy cannot be started, or ends.
    """
    results = Results(options.seed, refused=list(subjects.refused), views=subjects.views)
    results.left_out = tuple(sorted({name for subject in subjects.tables for name in subject.left_out}))
    made = make or (lambda subject: _covering(subject, options))
    with ExitStack() as stack:
        if cores is None:
            cores = stack.enter_context(Cores(kernel=options.kernel))
        results.executors["libcore"] = "libcore.so"
        if len(cores.readers) > 1:
            results.executors["kernel"] = "the same core, in this kernel"
        elif cores.absent:
            results.absent["kernel"] = cores.absent
        asked = _has_envoy(options, results)
        for batch in _batches(subjects.tables):
            _batch(batch, cores.core, cores.readers, made, asked, results)
    results.tables = len(subjects.tables)
    return results


def _covering(subject: Subject, options: Options) -> list[Request]:
    chance = random.Random(f"more {options.seed} {subject.name}")
    more = traffic(subject.decoded, chance, options.more)
    return [*corpus.requests(subject.decoded, options.seed, options.limits), *more]


def _has_envoy(options: Options, results: Results) -> bool:
    if not options.envoy:
        return False
    try:
        binary()
    except EnvoyError as error:
        results.absent["envoy"] = error.why
        return False
    return True


def _batches(tables: Sequence[Subject]) -> Iterator[list[Subject]]:
    for start in range(0, len(tables), BATCH):
        yield list(tables[start : start + BATCH])


def _batch(
    batch: list[Subject], core: Core, readers: list[HeadReader], made: Corpus, asked: bool, results: Results
) -> None:
    decided: list[_Decided] = []
    for subject in batch:
        # Each core draws from numbers of its own: they are compared by what they may choose, not by what they drew.
        requests = list(made(subject))
        outcomes: list[list[Outcome]] = []
        for reader in readers:
            draw = random.Random(f"{results.seed} {subject.name}")
            executor = Executor(core, subject, partial(draw.getrandbits, 32))
            outcomes.append([executor.decide(reader, request.data) for request in requests])
        second: list[Outcome | None] = list(outcomes[1]) if len(outcomes) > 1 else [None] * len(requests)
        decided.append((subject, requests, outcomes[0], second))
    answers = _answers(decided, results) if asked else {}
    for index, (subject, requests, native, kernel) in enumerate(decided):
        mine = {subject_route.key: subject_route for subject_route in subject.intent.routes.values()}
        for key in {outcome.route for outcome in native} & mine.keys():
            results.routes[subject.name, key] = mine[key]
        for at, request in enumerate(requests):
            answer = answers.get((index, at))
            results.judged.append(compare.judge(subject.name, request, native[at], kernel[at], answer))
        _splits(subject, index, requests, native, answers, results)


def _answers(decided: list[_Decided], results: Results) -> dict[tuple[int, int], Outcome]:
    """Envoy's outcomes; a table that it refuses is told as a difference, and the others are tried without it."""
    try:
        return _ask(decided, results)
    except RefusedError as refused:
        if len(decided) == 1:
            results.splits.append((decided[0][0].name, "the table", f"Envoy refuses it: {refused.why}"))
            return {}
    half = len(decided) // 2
    first, second = _answers(decided[:half], results), _answers(decided[half:], results)
    return first | {(index + half, at): outcome for (index, at), outcome in second.items()}


def _ask(decided: list[_Decided], results: Results) -> dict[tuple[int, int], Outcome]:
    """Envoy's outcomes by (table, request), for all requests that it is to be asked."""
    chosen = [
        [at for at, request in enumerate(requests) if _askable(request, native[at])]
        for _, requests, native, _ in decided
    ]

    async def talk() -> list[list[Outcome]]:
        async with Oracle([subject for subject, _, _, _ in decided]) as oracle:
            results.executors["envoy"] = oracle.version
            return await oracle.ask(
                [
                    (index, [(decided[index][1][at], decided[index][2][at].kind is not Kind.PUNT) for at in places])
                    for index, places in enumerate(chosen)
                ]
            )

    answers = asyncio.run(talk())
    return {
        (index, at): answer
        for index, places in enumerate(chosen)
        for at, answer in zip(places, answers[index], strict=True)
    }


def _askable(request: Request, native: Outcome) -> bool:
    if request.sort is Sort.CUT:
        return False
    return native.kind is not Kind.PUNT or native.home is not None or native.reason not in _SLOW


def _drawn(outcome: Outcome) -> str | None:
    """The cluster that was drawn, empty for one that does not exist; None: none was."""
    if outcome.kind is Kind.FORWARD:
        return outcome.cluster
    return "" if outcome.kind is Kind.REPLY and outcome.status == _MISSING else None


def _splits(
    subject: Subject,
    index: int,
    requests: list[Request],
    native: list[Outcome],
    answers: dict[tuple[int, int], Outcome],
    results: Results,
) -> None:
    """Weighted choices: what both drew is held against the weights of the configuration itself."""
    weights: dict[frozenset[str], dict[str, int]] = {}
    for vhost in subject.decoded.virtual_hosts:
        for route in vhost.routes:
            if isinstance(route.action, Forward) and len(route.action.clusters) > 1:
                shares: Counter[str] = Counter()
                for cluster in route.action.clusters:
                    shares[cluster.name if cluster.name in subject.clusters else ""] += cluster.weight
                weights.setdefault(frozenset(name for name in shares if shares[name]), dict(shares))
    repeated: dict[bytes, list[int]] = {}
    for at, request in enumerate(requests):
        if len(native[at].may) > 1 and request.aim.endswith(": weights"):
            repeated.setdefault(request.data, []).append(at)
    for places in repeated.values():
        shares_of = weights.get(native[places[0]].may)
        if shares_of is None or len(places) < 50:
            continue
        drawn = {
            "the core": [native[at].home or native[at] for at in places],
            "Envoy": [answers[index, at] for at in places if (index, at) in answers],
        }
        for who, outcomes in drawn.items():
            counts = Counter(name for outcome in outcomes if (name := _drawn(outcome)) is not None)
            difference = compare.split_difference(shares_of, counts) if counts else ""
            if difference:
                results.splits.append((subject.name, requests[places[0]].aim, f"{who}: {difference}"))
