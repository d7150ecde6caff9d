"""Bodies: physics, and what is seen of it. One file per body."""
