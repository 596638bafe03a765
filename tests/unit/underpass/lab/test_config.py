"""The configuration directory: kubectl's way of applying, and lines that stay where the user wrote them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controlplane.sources.documents import parse
from underpass.lab.config import apply, blank, complete, keys, name_for
from underpass.lab.images import Images
from underpass.lab.model import Options, SourceFile
from underpass.lab.plan import make_plan


def virtual_service(name: str, comment: str = "") -> str:
    return f"""{comment}apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: {name}
spec:
  hosts: [{name}]
  http:
  - route:
    - destination: {{host: {name}}}
"""


def file(name: str, text: str) -> SourceFile:
    return SourceFile(name, f"/u/{name}", text)


def identities(text: str) -> list[tuple[int, str]]:
    return [(document.line, document.data["metadata"]["name"]) for document in parse("x", text)]


ALL = file("all.yaml", "# first\n" + "---\n".join(virtual_service(name) for name in ("a", "b", "c")))


def test_a_later_file_replaces_objects_and_moves_nothing_else() -> None:
    before = identities(ALL.text)
    first, second = apply([ALL], file("b.yaml", virtual_service("b")))
    assert identities(first.text) == [item for item in before if item[1] != "b"]
    assert first.text.count("\n") == ALL.text.count("\n")
    assert identities(second.text) == [(1, "b")]


def test_a_file_whose_objects_are_all_replaced_goes() -> None:
    one = file("one.yaml", virtual_service("a"))
    assert [f.name for f in apply([one], file("two.yaml", virtual_service("a")))] == ["two.yaml"]


def test_the_same_name_replaces_the_file() -> None:
    new = file("all.yaml", virtual_service("d"))
    assert apply([ALL], new) == [new]


def test_the_version_of_an_api_is_no_part_of_an_identity() -> None:
    older = file("old.yaml", virtual_service("a").replace("/v1", "/v1beta1"))
    assert keys(older) == keys(file("new.yaml", virtual_service("a")))


def test_broken_documents_are_kept_for_the_control_plane_to_report() -> None:
    broken = file("broken.yaml", virtual_service("a") + "---\n{broken\n---\n" + virtual_service("b"))
    kept = blank(broken, keys(file("x", virtual_service("a"))))
    assert kept is not None
    assert "{broken" in kept.text
    assert [d.line for d in parse("x", kept.text)] == [d.line for d in parse("x", broken.text)][1:]


def test_comments_and_untouched_files_are_the_same_bytes() -> None:
    assert apply([ALL], file("z.yaml", virtual_service("z")))[0] is ALL
    only_comments = file("c.yaml", "# nothing here\n")
    assert apply([only_comments], file("z.yaml", virtual_service("z")))[0] is only_comments


def test_items_of_a_list_are_replaced_one_by_one() -> None:
    items = [yaml.safe_load(virtual_service(name)) for name in ("a", "b")]
    listed = file("l.yaml", yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    kept = blank(listed, keys(file("x", virtual_service("a"))))
    assert kept is not None
    assert [name for _, name in identities(kept.text)] == ["b"]


def test_names_in_the_directory() -> None:
    files = [SourceFile("a.yaml", "/x/a.yaml", ""), SourceFile("stdin.yaml", "-", "")]
    assert name_for("/x/a.yaml", files) == "a.yaml"
    assert name_for("/y/a.yaml", files) == "a-2.yaml"
    assert name_for("-", files) == "stdin-2.yaml"
    assert name_for("/y/lab-endpoints.yaml", files) == "lab-endpoints-2.yaml"
    assert name_for("/y/.hidden.yaml", files) == "hidden.yaml"
    assert name_for("/y/rules.yaml~", files) == "rules.yaml~.yaml"


SERVICE = """apiVersion: v1
kind: Service
metadata:
  name: {name}   # a comment
spec:
  ports:
  - port: 80
    name: http
"""

POD = """apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: x}}}}
spec:
  containers:
  - {{name: c, image: i}}
"""


def completed(text: str) -> tuple[list[tuple[int, str]], list[dict[str, Any]]]:
    source = file("f.yaml", text)
    found = complete(source, make_plan([source], Images(), Options(), 244))
    documents = parse("x", found)
    assert not [document.error for document in documents if document.error]
    return identities(found), [document.data for document in documents]


def test_services_and_pods_get_what_a_cluster_fills_in_and_lines_stay() -> None:
    text = "---\n".join(
        ["# top\n\n", SERVICE.format(name="s"), virtual_service("v"), POD.format(name="p"), virtual_service("w")]
    )
    lines, objects = completed(text)
    assert lines == identities(text)
    assert objects[0]["spec"] == {
        "ports": [{"port": 80, "name": "http"}],
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
    }
    assert objects[2]["status"]["podIP"] == "10.244.1.10"
    assert objects[2]["spec"]["nodeName"] == "node-1"


def test_a_service_with_an_address_is_left_alone() -> None:
    source = file("f.yaml", SERVICE.format(name="s") + "  clusterIP: 10.96.7.7\n")
    assert complete(source, make_plan([source], Images(), Options(), 244)) == source.text


def test_lists_keep_the_lines_of_their_items() -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n"
        + "".join(
            "- " + t.replace("\n", "\n  ").rstrip() + "\n" for t in (SERVICE.format(name="s"), virtual_service("v"))
        )
        + "---\n"
        + virtual_service("w")
    )
    lines, objects = completed(text)
    assert lines == identities(text)
    assert objects[0]["spec"]["clusterIP"] == "10.96.0.10"


WORDS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20)


@given(WORDS, st.sampled_from(["", "--- \n", "---\n", "# c\n---\n"]))
def test_whatever_a_service_says_survives(word: str, head: str) -> None:
    data = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "annotations": {"a": word, "n": "1:30", "yes": "no"}},
        "spec": {"ports": [{"port": 80, "name": "http"}]},
    }
    text = head + yaml.safe_dump(data, allow_unicode=False) + "---\n" + virtual_service("v")
    lines, objects = completed(text)
    assert lines == identities(text)
    assert objects[0]["metadata"] == data["metadata"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_any_line_ending(ending: str) -> None:
    text = (SERVICE.format(name="s") + "---\n" + virtual_service("v")).replace("\n", ending)
    lines, _ = completed(text)
    assert lines == identities(text)
