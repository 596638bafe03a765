"""The mesh as values: what sources produce and what translation reads.

Nothing here does I/O or knows xDS.  All values are frozen, compare by content and do not depend on the order in
which their inputs were read.
"""

from controlplane.model.mesh import Mesh
from controlplane.model.node import Node, NodeError, NodeType, parse_node
from controlplane.model.objects import Key, SourceRef

__all__ = ["Key", "Mesh", "Node", "NodeError", "NodeType", "SourceRef", "parse_node"]
