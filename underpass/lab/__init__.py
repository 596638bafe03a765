"""The lab: Kubernetes YAML as local workloads in network namespaces, and the sample server that plays their images.

Nothing is imported here, so that `python -m underpass.lab.server` starts as fast as the interpreter does.
"""
