"""Revisions and differences as a person reads them."""

from __future__ import annotations

from typing import Any

import pytest

from underpass.cli.errors import CliError
from underpass.cli.records import history


def object_of(**spec: Any) -> dict[str, Any]:
    return {"kind": "Service", "namespace": "a", "name": "b", "labels": {}, "annotations": {}, "spec": spec}


def change(word: str, before: Any, after: Any) -> dict[str, Any]:
    return {"change": word, "kind": "Service", "namespace": "a", "name": "b", "before": before, "after": after}


def test_leaves_that_differ_are_named_by_their_path() -> None:
    old = object_of(ports=[{"number": 1}, {"number": 2}], gone={"deep": 1}, same="x")
    new = object_of(ports=[{"number": 1}, {"number": 3}, {"number": 4}], same="x", text="\x1b")
    assert list(history.change_lines([change("changed", old, new)])) == [
        "changed Service a/b",
        '  - spec.gone: {"deep": 1}',
        "  - spec.ports[1].number: 2",
        "  + spec.ports[1].number: 3",
        '  + spec.ports[2]: {"number": 4}',
        '  + spec.text: "\\u001b"',
    ]


def test_null_is_a_value_and_absence_is_none() -> None:
    assert [path for path, *_ in history.differences({"a": None}, {})] == ["a"]
    assert list(history.differences({"a": None}, {"a": None})) == []


def test_what_came_or_went_is_one_line() -> None:
    lines = history.change_lines([change("added", None, object_of(x=1)), change("removed", object_of(x=1), None)])
    assert list(lines) == ["added Service a/b", "removed Service a/b"]


def test_many_changes_of_a_revision_are_counted() -> None:
    changes = [{"change": "added", "kind": "Pod", "namespace": "n", "name": str(n)} for n in range(9)]
    revision = {"id": "ab", "at": 0, "cause": "edit", "objects": 9, "changes": changes}
    star, _, at, *_, listed = history.revision_cells(revision, in_force=True)
    assert (star, at) == ("*", "1970-01-01 00:00:00Z")
    assert listed.splitlines()[0] == "added Pod n/0"
    assert listed.splitlines()[-1] == "and 3 more"
    assert history.revision_cells({**revision, "changes": []}, in_force=False)[-1] == "-"


@pytest.mark.parametrize("answer", [[], "text", {}, {"revisions": {}}])
def test_another_answer_is_an_error(answer: Any) -> None:
    with pytest.raises(CliError, match="not understood"):
        history.page(answer, "revisions")
