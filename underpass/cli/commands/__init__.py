"""One module for each command: reads, and hands over to `records`."""
