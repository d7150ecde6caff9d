"""What improves a policy, in a real or an imagined environment."""
