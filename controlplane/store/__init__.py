"""Configuration in an etcd, for more than one replica: how it is laid out, followed and written; who leads."""
