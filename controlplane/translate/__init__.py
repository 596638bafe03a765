"""From the mesh and a node to xDS resources with Istio's names and shapes.  Pure and deterministic.

How the xDS room uses it::

    prepared = prepare(mesh, previous)        # once per change; reuses every message whose inputs did not change
    resources = translate(prepared, node)     # cheap, once per distinct ``node.view``
    message = resource_for(prepared, node, type_url, name)   # a name that the client asked for and resources lack

``resources[type_url][name]`` is an upb message (``underpass.api.envoy``).  Messages are shared: two nodes, or two
generations, that are served the same content usually get *the same object*, so serialised bytes may be cached by
message identity.  Nobody may modify them.

Type URLs have their prefix (``type.googleapis.com/envoy.config.cluster.v3.Cluster``).  For every EDS cluster in CDS
there is a ClusterLoadAssignment in EDS, possibly empty; an RDS name that a listener refers to is always in RDS.
"""

from controlplane.translate.engine import Prepared, parts, prepare, resource_for, translate
from controlplane.translate.patches import remarked
from controlplane.translate.resources import Message, Resources

__all__ = ["Message", "Prepared", "Resources", "parts", "prepare", "remarked", "resource_for", "translate"]
