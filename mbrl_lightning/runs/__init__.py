"""A run on disk: its folder, lock, checkpoints, signals, and several seeds side by side."""
