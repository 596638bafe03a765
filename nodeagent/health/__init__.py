"""Which endpoints are taken out of their clusters for what they answer (sans-IO)."""
