"""The node agent: xDS in, BPF maps out. An application, not an API; the stable surfaces are in docs/ARCHITECTURE.md."""
