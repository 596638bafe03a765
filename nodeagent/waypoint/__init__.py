"""The node-local waypoint: an Envoy that the agent starts, watches, drains and restarts."""
