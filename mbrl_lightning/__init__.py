"""Model-based meta-reinforcement learning on TorchRL and Lightning.

Importing the package imports nothing heavy: configuration errors reach the user before PyTorch has loaded.
"""

__version__ = "0.1.0"
