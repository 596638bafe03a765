"""The command line, the lab and the generated xDS types."""
