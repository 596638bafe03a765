"""The command line. `app` is the entry point and imports nothing but what the command that was called needs."""
