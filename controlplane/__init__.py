"""The control plane: Kubernetes and Istio configuration in, xDS out."""

import os

# gRPC's core writes what a peer says in its farewell to standard error as it came: forged log lines, terminal escapes.
# It reads this when it is loaded, so it has to be set before anything imports it. Who debugs gRPC sets it otherwise.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
