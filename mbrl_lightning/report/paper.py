"""What the papers report, to stand beside what we measure, and the unit of each family's return."""

from __future__ import annotations

from typing import NamedTuple

from mbrl_lightning.runs.results import return_unit


class Paper(NamedTuple):
    """A published number to stand beside ours."""

    env: str
    method: str
    metric: str
    value: float
    source: str


# From the GSSM paper (graph structured surrogate model, amortised policy search). Returns are means per step
# (cartpole, acrobot) or sums over 1,000 steps. It does not state the units of its MSEs, nor how many real
# steps its policies took; "1x" is its name for the number of steps of the model-based methods.
PAPER = (
    Paper("cartpole", "gssm", "model/mse", 0.0296, "Table 4"),
    Paper("cartpole", "deep_pilco, one task", "return/policy", -0.6, "text of appendix G.2, 'about'"),
    Paper("acrobot", "gssm", "model/mse", 0.0024, "Table 4"),
    Paper("acrobot", "gssm_aps", "return/policy", -0.478, "Table 2"),
    Paper("acrobot", "gssm", "return/policy", -0.506, "Table 2"),
    Paper("acrobot", "dr_ppo", "return/policy", -0.836, "Table 1, 1x"),
    Paper("half_cheetah", "gssm", "model/mse", 0.530, "Table 4"),
    Paper("half_cheetah", "gssm_aps", "return/policy", 1597, "Table 2"),
    Paper("half_cheetah", "gssm", "return/policy", 1307, "Table 2"),
    Paper("half_cheetah", "dr_ppo", "return/policy", 453, "Table 1, 1x"),
    *(
        Paper(env, method, metric, value, source)
        for env in ("slim_humanoid", "slim_humanoid_torque")
        for method, metric, value, source in (
            ("gssm", "model/mse", 1.78, "Table 4"),
            ("gssm_aps", "return/policy", 1642, "Table 2"),
            ("gssm", "return/policy", 717, "Table 2"),
            ("dr_ppo", "return/policy", 539, "Table 1, 1x"),
        )
    ),
)
# For rows that do not give the horizon with their unit.
UNITS = {
    **dict.fromkeys(("cartpole", "cartpole_wide"), return_unit("step", 25)),
    "acrobot": return_unit("step", 200),
    **dict.fromkeys(("half_cheetah", "half_cheetah_wide", "half_cheetah_flip"), return_unit("episode", 1000)),
    **dict.fromkeys(("slim_humanoid", "slim_humanoid_torque"), return_unit("episode", 1000)),
}
WORDS = {"": "", "step": "mean reward per step", "episode": "sum of rewards of an episode"}


def full_unit(unit: str, env: str) -> str:
    """A return's unit in words, with the horizon if the row gives it or the env is one of ours."""
    return UNITS.get(env, WORDS[unit]) if unit in WORDS else unit
