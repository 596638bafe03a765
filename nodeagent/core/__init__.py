"""The C core (kernel/core) as home, `underpass explain` and tests call it: there is no second implementation."""
