"""YAML to documents: lines, isolation of what is broken, Kubernetes' reading of scalars, limits."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controlplane.sources.documents import parse


def test_documents_know_their_lines() -> None:
    text = "# head\n---\nkind: A\n---\n\n# only a comment\n---\n\nkind: B\n...\n---\nkind: C\n"
    assert [(d.line, d.data) for d in parse("f", text)] == [(3, {"kind": "A"}), (9, {"kind": "B"}), (12, {"kind": "C"})]


def test_a_broken_document_spoils_only_itself() -> None:
    one, two, three = parse("f", "kind: A\n---\nkind: [\n---\nkind: C\n")
    assert one.data == {"kind": "A"}
    assert two.error is not None
    assert two.error[0] == "invalid-yaml"
    assert two.error[2] == 4  # where the scanner gave up: the end of that document
    assert (three.line, three.data) == (5, {"kind": "C"})


def test_marker_inside_a_block_scalar_ends_the_document_as_yaml_says() -> None:
    first, second = parse("f", "text: |\n  a\n---\nkind: B\n")
    assert first.data == {"text": "a\n"}
    assert second.data == {"kind": "B"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("010", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1e3", 1000.0),
        (".5", 0.5),
        (".inf", ".inf"),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("y", "y"),
        ('"8"', "8"),
        ("1_000", 1000),
    ],
)
def test_scalars(text: str, value: object) -> None:
    (document,) = parse("f", f"v: {text}")
    assert document.data == {"v": value}
    assert type(document.data["v"]) is type(value)


def test_lines_of_parts_are_kept_for_istio_objects_only() -> None:
    text = "apiVersion: {}\nspec:\n  http:\n  - name: a\n  - name: b\n"
    (istio,) = parse("f", text.format("networking.istio.io/v1"))
    assert istio.lines["spec.http[0]"] == 4
    assert istio.lines["spec.http[1].name"] == 5
    (pod,) = parse("f", text.format("v1"))
    assert pod.lines == {}


def test_lists_are_taken_apart() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- kind: A\n- apiVersion: networking.istio.io/v1\n  spec: {x: 1}\n"
    one, two = parse("f", text)
    assert (one.line, one.data) == (4, {"kind": "A"})
    assert two.line == 5
    assert two.lines["spec.x"] == 6


def test_merge_keys_and_aliases() -> None:
    (document,) = parse("f", "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n")
    assert document.data["b"] == {"p": 1, "q": 3}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: 1\na: 2\n", "duplicate-key"),
        ("? [a]\n: 1\n", "invalid-yaml"),
        ("[" * 200 + "]" * 200, "too-deep"),
        ("a: *unknown", "invalid-yaml"),
        ("a: \x01", "invalid-yaml"),
    ],
)
def test_errors_are_named(text: str, code: str) -> None:
    (document,) = parse("f", text)
    assert document.error is not None
    assert document.error[0] == code


def test_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (document,) = parse("f", "\n".join(lines))
    assert document.error is not None
    assert document.error[0] == "too-large"


@given(st.text())
@example("\ufeffkind: A")
@example("---\x85---")
@example("- &a [*a]")
def test_total(text: str) -> None:
    for document in parse("f", text):
        assert document.line >= 1
        assert (document.error is None) or document.error[2] >= 1
