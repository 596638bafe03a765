"""One node: its workloads' registry, their network namespaces, and the programs attached to them."""
