"""The control plane: Kubernetes and Istio configuration in, xDS out."""
