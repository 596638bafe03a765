"""The home process: keeps the upstreams that the kernel lends, and serves what the kernel punts."""
