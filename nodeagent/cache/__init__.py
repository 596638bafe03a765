"""What the control plane said, as plain values: protobuf ends here (pure)."""
