"""From one state to the next: what is in force, and what each author is told."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.model.build import build
from controlplane.model.objects import Key
from controlplane.model.verdict import Verdict
from controlplane.sources.documents import parse
from controlplane.sources.files import File, Snapshot
from controlplane.sources.ingest import Ingested, State, ingest, step
from tests.support.mesh import snapshot

SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {ports: [{port: 80, name: http}]}\n"
RULE = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s}
spec:
  hosts: [%s]
  http:
  - timeout: %s
    route: [{destination: {host: %s}}]
"""


SELECTING = """apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{port: 80, name: http}]}
"""
POD = """apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: a}}
spec: {containers: [{name: c}]}
status: {podIP: %s}
"""
SLICE = """apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: p}}]
"""


def rule(name: str = "r", host: str = "a", timeout: str = "1s", target: str = "a") -> str:
    return RULE % (name, host, timeout, target)


def of(done: Ingested, name: str) -> Verdict:
    (found,) = [verdict for verdict in done.verdicts if verdict.name == name]
    return found


def timeouts(done: Ingested) -> dict[str, int]:
    return {config.meta.key.name: config.spec.http[0].timeout.seconds for config in done.mesh.virtual_services}


def test_broken_edit_keeps_the_last_good_version() -> None:
    first = ingest(State(), snapshot({"a": SERVICE % "a", "r": rule(timeout="1s")}))
    second = ingest(first.state, snapshot({"a": SERVICE % "a", "r": rule(timeout="soon")}, 1))
    assert timeouts(second) == {"r": 1}
    verdict = of(second, "r")
    assert (verdict.state, verdict.code, verdict.last_good, verdict.line) == ("rejected", "invalid-field", True, 7)
    third = ingest(second.state, snapshot({"a": SERVICE % "a", "r": rule(timeout="3s")}, 2))
    assert timeouts(third) == {"r": 3}
    assert of(third, "r").state == "accepted"


def test_never_good_has_no_last_good() -> None:
    done = ingest(State(), snapshot({"r": rule(timeout="soon")}))
    assert timeouts(done) == {}
    assert of(done, "r").last_good is False


def test_unreadable_file_keeps_its_objects() -> None:
    text = rule("one") + "---\n" + rule("two", "b")
    first = ingest(State(), snapshot({"r": text}))
    second = ingest(first.state, snapshot({"r": rule("one", timeout="5s") + "---\nkind: [\n"}, 1))
    assert timeouts(second) == {"one": 5, "two": 1}
    assert [note.code for note in of(second, "two").notes if note.code == "last-good"] == ["last-good"]
    (broken,) = [verdict for verdict in second.verdicts if verdict.state == "rejected"]
    assert (broken.kind, broken.code, broken.last_good) == ("", "invalid-yaml", True)
    third = ingest(second.state, snapshot({"r": rule("one")}, 2))
    assert timeouts(third) == {"one": 1}


def test_removed_object_and_file_go() -> None:
    first = ingest(State(), snapshot({"r": rule("one") + "---\n" + rule("two", "b"), "s": rule("three", "c")}))
    second = ingest(first.state, snapshot({"r": rule("two", "b")}, 1))
    assert set(timeouts(second)) == {"two"}


def test_second_definition_is_shadowed_and_the_one_in_force_stays() -> None:
    first = ingest(State(), snapshot({"m": rule(timeout="1s")}))
    second = ingest(first.state, snapshot({"m": rule(timeout="1s"), "a": rule(timeout="9s")}))
    assert timeouts(second) == {"r": 1}
    states = {verdict.file: (verdict.state, verdict.code) for verdict in second.verdicts}
    assert states == {"m": ("accepted", ""), "a": ("shadowed", "duplicate-object")}
    # When the first goes, the second takes its place.
    third = ingest(second.state, snapshot({"a": rule(timeout="9s")}))
    assert timeouts(third) == {"r": 9}


def test_duplicate_host_is_shadowed_by_the_older() -> None:
    old = rule("z-old").replace("name: z-old", "name: z-old, creationTimestamp: '2020-01-01T00:00:00Z'")
    young = rule("a-young").replace("name: a-young", "name: a-young, creationTimestamp: '2021-01-01T00:00:00Z'")
    done = ingest(State(), snapshot({"a": SERVICE % "a", "o": old, "y": young}))
    verdict = of(done, "a-young")
    assert (verdict.state, verdict.code) == ("shadowed", "duplicate-host")
    assert "z-old" in verdict.reason
    assert of(done, "z-old").state == "accepted"


def test_an_edit_does_not_make_an_object_younger() -> None:
    def at(seconds: int, name: str, text: str) -> File:
        return File(name, (seconds * 10**9, 0, 0), parse(name, text))

    first = ingest(State(), Snapshot({"a": at(10, "a", rule("one")), "b": at(20, "b", rule("two"))}))
    assert of(first, "two").state == "shadowed"
    second = ingest(first.state, Snapshot({"a": at(30, "a", rule("one", timeout="2s")), "b": first_file(first)}))
    assert of(second, "two").state == "shadowed"


def first_file(done: Ingested) -> File:
    return File("b", (20 * 10**9, 0, 0), done.state.files["b"].documents)


def test_remarks_about_other_objects() -> None:
    done = ingest(State(), snapshot({"a": SERVICE % "a", "r": rule(target="nowhere")}))
    verdict = of(done, "r")
    assert (verdict.state, [(note.code, note.line) for note in verdict.notes]) == ("accepted", [("unknown-host", 8)])


def test_unchanged_files_are_not_converted_again() -> None:
    before = snapshot({"a": SERVICE % "a", "r": rule()})
    state, _ = step(State(), before)
    again, _ = step(state, before)
    key = Key("VirtualService", "default", "r")
    assert again.good[key].object is state.good[key].object


TEXTS = st.sampled_from(
    [
        SERVICE % "a",
        SERVICE % "b",
        rule("r"),
        rule("r", timeout="2s"),
        rule("s", "b"),
        rule(timeout="soon"),
        "kind: [",
        rule("r") + "---\n" + SERVICE % "a",
        "",
        "a: 1",
        SELECTING,
        POD % "10.0.0.1",
        POD % "10.0.0.2",
        SLICE,
    ]
)


@settings(max_examples=200)
@given(st.lists(st.dictionaries(st.sampled_from("xyz"), TEXTS, max_size=3), min_size=1, max_size=5))
def test_laws(history: list[dict[str, str]]) -> None:
    """Any history: total, every document has a verdict, and what is in force was valid at some time."""
    state = State()
    for generation, files in enumerate(history):
        done = ingest(state, snapshot(files, generation))
        state = done.state
        again: Any = ingest(state, snapshot(files, generation))
        assert again.state.objects() == state.objects()  # taking the same snapshot again changes nothing
        fresh = build(state.objects()).mesh  # without memory
        assert (fresh.services, fresh.endpoints, fresh.targets) == (
            done.mesh.services,
            done.mesh.endpoints,
            done.mesh.targets,
        )
        accepted = {Key(v.kind, v.namespace, v.name) for v in done.verdicts if v.state == "accepted"}
        shadowed = {Key(v.kind, v.namespace, v.name) for v in done.verdicts if v.state == "shadowed"}
        kept = {Key(v.kind, v.namespace, v.name) for v in done.verdicts if v.last_good}
        assert set(state.good) <= accepted | shadowed | kept
        owned = [key for file in state.files.values() for key in file.keys]
        assert sorted(owned) == sorted(state.good)
