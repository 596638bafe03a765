"""xDS as a server speaks it: a state machine per stream (``session``, sans-IO) and gRPC around it (``server``).

Nothing in here knows the mesh: it serves whatever a :class:`~controlplane.xds.session.View` holds.
"""
