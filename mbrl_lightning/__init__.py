"""Model-based meta-reinforcement learning on TorchRL and Lightning.

`from mbrl_lightning import fit, evaluate, report` gives the commands as functions (each module of these names can be called), and
`load` what a run has learned, as an agent to call.
Importing the package imports nothing heavy: configuration errors reach the user before PyTorch has loaded.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from mbrl_lightning.agent import Agent

__version__ = "0.1.0"


def load(run: "str | PathLike[str]", env_file: str | None = None, device: str = "cpu") -> "Agent":
    """What a run had learned at its newest complete checkpoint, as an agent to call. No code of it is run but its `env.file`.

    Args:
        run: its folder, e.g. `runs/cartpole/gssm_aps/seed0`, or `pretrained:NAME`, weights that are shipped.
        env_file: where its `env.file`, if it has one, is now.
        device: where the networks are put.

    Raises:
        ConfigError: there is no run, or its task family or weights do not fit this version: the text says what differs.
        StorageError: it has no complete checkpoint.
    """
    from mbrl_lightning.config import read_run_config
    from mbrl_lightning.config.console import quiet_libraries
    from mbrl_lightning.config.files import located
    from mbrl_lightning.runs.run import version_told

    folder = located(run)
    with version_told(folder):
        cfg = read_run_config(run, env_file)
        quiet_libraries()
        from mbrl_lightning.agent import restored

        return restored(cfg, folder, device)


if TYPE_CHECKING:  # what a caller sees; at run time the modules themselves are called, see config/console.py
    from mbrl_lightning.evaluate import evaluate as evaluate
    from mbrl_lightning.fit import fit as fit
    from mbrl_lightning.report import report as report
