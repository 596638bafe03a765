"""What people and tools ask the control plane about itself: health, metrics, configuration status, istiod's debug."""
