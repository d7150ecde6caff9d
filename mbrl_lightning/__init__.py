"""Model-based meta-reinforcement learning on TorchRL and Lightning.

`from mbrl_lightning import fit, evaluate, report` gives the commands as functions (each module of these names can be called).
Importing the package imports nothing heavy: configuration errors reach the user before PyTorch has loaded.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # what a caller sees; at run time the modules themselves are called, see config/console.py
    from mbrl_lightning.evaluate import evaluate as evaluate
    from mbrl_lightning.fit import fit as fit
    from mbrl_lightning.report import report as report
