"""What the agent tells about itself: the status file, the socket, and explanations over the live maps."""
