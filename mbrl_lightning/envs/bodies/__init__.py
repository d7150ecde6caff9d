"""Bodies: the physics of each, and what is seen of it."""
