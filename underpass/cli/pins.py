"""A node's pinned maps, opened for the length of one look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from nodeagent.bpf.abc import Kernel, Map
from nodeagent.bpf.errors import NotPinnedError
from nodeagent.bpf.kernel import LinuxKernel
from underpass.cli.errors import UNREACHABLE, CliError
from underpass.cli.targets import Node


@contextmanager
def maps(node: Node, names: Iterable[str], kernel: Kernel | None = None) -> Iterator[Mapping[str, Map]]:
    """The maps by name. Raises CliError when one is not pinned, BpfError for anything else."""
    edge = kernel or LinuxKernel()
    opened: dict[str, Map] = {}
    with ExitStack() as stack:
        for name in names:
            try:
                opened[name] = edge.pinned_map(node.bpffs / "maps" / name)
            except NotPinnedError as error:
                raise CliError(
                    f"the map {name} of {node.name} is not pinned",
                    f"nothing at {node.bpffs}/maps/{name}",
                    "start underpass-agent on this node",
                    UNREACHABLE,
                ) from error
            stack.callback(opened[name].close)
        yield opened
