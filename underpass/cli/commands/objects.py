"""`underpass config apply|delete|get|replicas`: objects in the store of control planes with more than one replica.

Written through a control plane, as with a Kubernetes API server: it judges objects before it stores them, and it alone
holds the etcd's credentials.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
import yaml

from underpass.cli import ask, output
from underpass.cli.commands.analyze import read
from underpass.cli.errors import FAILED, UNREACHABLE, USAGE, CliError
from underpass.cli.output import API_VERSION, Output, OutputOption
from underpass.cli.targets import ControlPlaneOption, LabOption, control_plane, discover_control_plane

_API: Final = "/api/v1/config"
#: The control plane takes bodies of 1 MiB; JSON may need two bytes for one.
_BODY: Final = 480 * 1024

FilesOption = Annotated[
    list[str] | None, typer.Option("-f", "--file", metavar="FILE|DIR", help="YAML (repeatable); - for stdin.")
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Judge and compare only; write nothing.")]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of the object.")]


def apply(
    files: FilesOption = None,
    dry: DryOption = False,
    form: OutputOption = Output.TABLE,
    address: ControlPlaneOption = None,
    lab: LabOption = None,
) -> None:
    """Store objects for all replicas; nothing is stored when one of them would be rejected.

    An object with metadata.resourceVersion replaces that version only. Exit code 1 when something is rejected or
    somebody else was faster, 3 when the control plane has lost its etcd.
    """
    if not files:
        raise CliError("nothing to apply", "no -f FILE", "underpass config apply -f rules.yaml", USAGE)
    where = control_plane(address, discover_control_plane(), lab)
    texts, unreadable = read(files)
    if unreadable:
        first = unreadable[0]
        raise CliError(f"cannot read {first.file}:{first.line}", first.message, "mend the file", USAGE)
    parts = list(_parts(texts))
    if len(parts) > 1:  # all of it is judged before any of it is written
        judged = [_write(where, "apply", {"files": part}, dry=True) for part in parts]
        if dry or any(item["problems"] for item in judged):
            _tell(_merged(judged), form)
            return
    _tell(_merged([_write(where, "apply", {"files": part}, dry=dry) for part in parts]), form)


def delete(
    object_name: Annotated[str | None, typer.Argument(metavar="[KIND/NAME]", help="As VirtualService/reviews.")] = None,
    namespace: NamespaceOption = None,
    files: FilesOption = None,
    dry: DryOption = False,
    form: OutputOption = Output.TABLE,
    address: ControlPlaneOption = None,
    lab: LabOption = None,
) -> None:
    """Remove an object from the store, or all objects that files define; all of them or none."""
    if (object_name is None) == (not files):
        raise CliError("delete what?", "", "give KIND/NAME, or -f FILE", USAGE)
    where = control_plane(address, discover_control_plane(), lab)
    if object_name is not None:
        kind, slash, name = object_name.partition("/")
        if not (kind and slash and name):
            raise CliError(f"{object_name!r} is not KIND/NAME", "", "as VirtualService/reviews", USAGE)
        objects = [{"kind": kind, "namespace": "default" if namespace is None else namespace, "name": name}]
    else:
        texts, _ = read(files or [])
        objects = []
        for part in _parts(texts):
            judged = _write(where, "apply", {"files": part}, dry=True)
            if judged["problems"]:
                _tell(judged, form)
            objects += [_named(item) for item in (*judged["changes"], *judged["unchanged"])]
        if not objects:
            raise CliError("nothing to delete", "the files hold no object of a mesh", "", USAGE)
    _tell(_write(where, "delete", {"objects": objects}, dry=dry), form)


def get(
    object_name: Annotated[
        str | None, typer.Argument(metavar="[KIND[/NAME]]", help="As VirtualService/reviews.")
    ] = None,
    namespace: NamespaceOption = None,
    form: Annotated[str, typer.Option("-o", "--output", help="table, yaml or json.")] = "table",
    address: ControlPlaneOption = None,
    lab: LabOption = None,
) -> None:
    """Objects in the store: where each was written and its version; as YAML or JSON with all that they say.

    What `-o yaml` prints can be edited and applied again: its resourceVersion guards against others' changes.
    """
    if form not in ("table", "yaml", "json"):
        raise CliError(f"-o {form}", "it is none of table, yaml, json", "", USAGE)
    where = control_plane(address, discover_control_plane(), lab)
    page = _page(ask.exchange(where, f"{_API}/objects", timeout=_TIMEOUT), "objects")
    kind, _, name = (object_name or "").partition("/")
    found = [
        item
        for item in page["objects"]
        if (not kind or item["kind"].lower() == kind.lower())
        and (not name or item["name"] == name)
        and (namespace is None or item["namespace"] == namespace)
    ]
    if name and not found:
        raise CliError(f"no {object_name} in the store", "", "underpass config get lists what is there", FAILED)
    if form == "json":
        output.write_json({"apiVersion": API_VERSION, "kind": "ConfigObjects", **page, "objects": found})
    elif form == "yaml":
        documents = [_versioned(item) for item in found if isinstance(item["object"], dict)]
        print(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True), end="")
    else:
        rows = [(_title(item), f"{item['file']}:{item['line']}", item["resourceVersion"]) for item in found]
        output.console().print(output.table(("OBJECT", "WHERE", "VERSION"), rows, right=["VERSION"]))
        if page["stale"]:
            output.console().print("the control plane has lost its store: this is what it knew last", markup=False)


def replicas(form: OutputOption = Output.TABLE, address: ControlPlaneOption = None, lab: LabOption = None) -> None:
    """The store as this control plane sees it, the replicas that share it, and which of them leads.

    Exit code 3 when the store is lost.
    """
    where = control_plane(address, discover_control_plane(), lab)
    found = _page(ask.exchange(where, "/api/v1/store", timeout=_TIMEOUT), "configured")
    if form is Output.JSON:
        output.write_json({"apiVersion": API_VERSION, "kind": "ConfigStore", **found})
    elif not found["configured"]:
        output.console().print("no store: this control plane is alone, and reads a directory")
    else:
        rows = [(item["name"], item["id"], _moment(item["since"])) for item in found.get("replicas", ())]
        if rows:
            output.console().print(output.table(("REPLICA", "ID", "SINCE"), rows))
        state = "in reach" if found["available"] else f"lost: {found['reason']}"
        leader = found["leader"] or "nobody"
        output.console().print(
            f"store {state}; {found['objects']} objects at revision {found['revision']}; {leader} leads", markup=False
        )
    if found["configured"] and not found["available"]:
        raise typer.Exit(UNREACHABLE)


_TIMEOUT: Final = 30.0


def _parts(texts: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Files in groups that one request takes."""
    part: dict[str, str] = {}
    size = 0
    for name, text in texts.items():
        weight = len(text.encode()) + len(name)
        if weight > _BODY:
            raise CliError(f"{name} is too large", f"{weight} bytes; a request takes {_BODY}", "divide it", USAGE)
        if part and size + weight > _BODY:
            yield part
            part, size = {}, 0
        part[name] = text
        size += weight
    if part:
        yield part


def _write(where: str, verb: str, body: Mapping[str, Any], *, dry: bool) -> dict[str, Any]:
    path = f"{_API}/{verb}" + ("?dryRun=1" if dry else "")
    status, page = ask.exchange(where, path, body=json.dumps(body, ensure_ascii=False).encode(), timeout=_TIMEOUT)
    return _page((200 if status in (409, 422) and "problems" in page else status, page), "problems")


def _page(answer: tuple[int, Any], needs: str) -> dict[str, Any]:
    """The document of an answer. Raises CliError for a refusal, in the control plane's own words."""
    status, page = answer
    ask.refuse(status, page)
    if status != 200 or not isinstance(page, dict) or needs not in page:
        why = page[:200] if isinstance(page, str) else "its answer is not understood"
        raise CliError(f"the control plane answered {status}", why, "is it one of this version?", FAILED)
    return page


def _merged(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for answer in answers:
        for name, value in answer.items():
            merged[name] = [*merged.get(name, ()), *value] if isinstance(value, list) else value
    return merged


def _tell(page: Mapping[str, Any], form: Output) -> None:
    """Print what became of each object; exit code 1 when nothing was written because of problems."""
    if form is Output.JSON:
        output.write_json({"apiVersion": API_VERSION, "kind": "ConfigWrite", **page})
    else:
        for line in _lines(page):
            output.console().print(line, markup=False)
    if page["problems"]:
        raise typer.Exit(FAILED)


def _lines(page: Mapping[str, Any]) -> Iterator[str]:
    suffix = " (dry run)" if page["dryRun"] else ""
    for item in page["problems"]:
        title = f"{_title(item)}: " if item["kind"] else ""
        yield f"{item['file']}:{item['line']}: {title}{item['reason']} [{item['code']}]"
    if page["problems"]:
        yield "nothing was written"
        return
    for item in page["warnings"]:
        yield f"{item['file']}:{item['line']}: {_title(item)}: {item['message']} [{item['code']}]"
    for item in page["ignored"]:
        yield f"{item['file']}:{item['line']}: {item['kind']}: not an object of a mesh, left out"
    for item in page["changes"]:
        yield f"{_title(item)} {item['change']}{suffix}"
    for item in page["unchanged"]:
        yield f"{_title(item)} unchanged"


def _moment(seconds: object) -> str:
    return datetime.fromtimestamp(float(str(seconds)), UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _named(item: Mapping[str, Any]) -> dict[str, str]:
    return {part: str(item[part]) for part in ("kind", "namespace", "name")}


def _title(item: Mapping[str, Any]) -> str:
    return (
        f"{item['kind']} {item['namespace']}/{item['name']}" if item["namespace"] else f"{item['kind']} {item['name']}"
    )


def _versioned(item: Mapping[str, Any]) -> dict[str, Any]:
    document = dict(item["object"])
    metadata = document.get("metadata")
    document["metadata"] = {
        **(metadata if isinstance(metadata, dict) else {}),
        "resourceVersion": item["resourceVersion"],
    }
    return document
