"""Transitions: collected, at rest, and cut into contexts and targets."""
