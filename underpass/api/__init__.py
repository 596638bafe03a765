"""The wire types both programs share: Envoy's v3 API. See :mod:`underpass.api.envoy`."""
