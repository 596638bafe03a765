"""What a route does beyond forwarding: values that the agent writes and home carries out (pure)."""
