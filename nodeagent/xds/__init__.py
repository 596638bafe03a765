"""The agent's side of xDS: a delta ADS session without I/O, and the gRPC client that carries it."""
