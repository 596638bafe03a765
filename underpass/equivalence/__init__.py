"""Envoy as the oracle: the same resources and the same requests to the cores and to a real Envoy, outcomes compared.

`subjects` makes route tables of YAML or of an istiod's resources, `corpus` the requests that cover them, `cores` and
`envoy` are the executors, `compare` is the judge, `run` puts them together, `report` tells.
"""
