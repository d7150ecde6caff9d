"""What docs/results.md says of each family with a hidden task when its first rows are in results/."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from mbrl_lightning.config import available

INTRODUCTION = """## Tasks that are hidden and switch

In the families below nobody tells the agent its task, and it may change while an episode runs (M3PO). There is no
context and no adaptation phase: an episode begins with an empty history, and the policy finds out as it acts. The
reward just received is the last entry of the observation, or is in the history only, and is learned with it. M3PO
publishes curves and no numbers.

**A number** is the return of the deterministic policy, one episode for each test task, mean over tasks; a test task
is what an episode starts with, and what follows is drawn as in training. Seeds may be bimodal (a direction is learned
or not), so the median over seeds stands beside the mean, and the reward table has the worse direction: a policy
that runs one way only earns there what it loses.

**Reward per step** is a mean over all steps of those episodes that are of the kind: under each value of the hidden
parameter, before the first switch, and 0-9, 10-24 and more steps after a switch.

**Methods.** `m3po`: model and policy see the history, the policy learns from imagined steps that branch off real
histories. `m2po`: the model does not see the history. `m3po_h`: imagined data give way to real ones. `recurrent_sac`:
the same policy and updates on real data alone. `pearl`: model-free, a latent inferred anew every `pearl.hold` steps;
its training data are sorted by the true task. Variants carry a suffix (`m3po_k3`: branches of 3 steps; `m3po_full`:
whole imagined episodes; `m3po_beta0.5`: half of what the policy learns from is real). `visible`: the hidden parameter
is shown, the ceiling of what a history can be worth.
"""

SECTIONS = {
    "point_switch": (
        "Point in the plane",
        "The wanted direction along x turns round every 45 to 55 of 200 steps and is in the history only. "
        "Reward d v_x - 0.1 |a|^2; blind the best return is 0, with the direction known about 320. Test "
        "tasks: each direction ten times.",
    ),
    "half_cheetah_fwd_bwd": (
        "Half-cheetah, forwards or backwards",
        "The direction is drawn anew every 270 to 330 of 1,000 steps. Reward d v - 0.05 |a|^2. Test tasks: "
        "each direction ten times.",
    ),
    "half_cheetah_pier": (
        "Half-cheetah on a pier",
        "Eight floating blocks whose damping U[0, 10] and friction U[0.2, 0.8] are drawn for each episode of "
        "1,000 steps of 0.01 s, and stay. Reward v - 0.05 |a|^2, v of the centre of mass. Test tasks: 20 "
        "fixed draws.",
    ),
    "ant_fwd_bwd": (
        "Ant, forwards or backwards",
        "The direction is drawn anew every 270 to 330 of at most 1,000 steps. Reward d v - 0.5 |a|^2 + 1 for "
        "every step that the torso stays between 0.2 and 1 m high. Test tasks: each direction ten times.",
    ),
    "ant_crippled_leg": (
        "Ant with a crippled leg",
        "Which of four legs does not work is drawn anew every 270 to 330 of 1,000 steps. Reward v + 0.05, v "
        "of the centre of mass. Test tasks: each leg five times.",
    ),
    "walker2d_random_params": (
        "Walker with hidden mass and friction",
        "Torso mass and ground friction, each times 1.5^U[-3, 3], are drawn anew every 270 to 330 of at most "
        "1,000 steps. Reward v + 1 - 0.001 |a|^2 for every step without a fall. Test tasks: 20 fixed draws.",
    ),
    "humanoid_direc": (
        "Humanoid, forwards or backwards",
        "The direction is drawn anew every 270 to 330 of at most 1,000 steps. Reward 1.25 d v - 0.1 |0.4 a|^2 "
        "+ 5, v of the centre of mass, for every step that the torso stays between 1 and 2 m high. Test "
        "tasks: each direction ten times.",
    ),
}
VARIANTS = {
    r"m3po_k(\d+)": r"m3po branch.length=\1",
    r"m3po_beta([\d.]+)": r"m3po branch.beta=\1",
    "m3po_full": "m3po branch.full=true",
    "m3po_squares": "m3po history.squares=true",
    "m3po_nosquares": "m3po history.squares=false",
    "visible": "recurrent_sac env.options.told=true",
}


def begin_section(name: str, found: Mapping[str, Sequence[int]], first: bool) -> str:
    """Heading, what the family is, commands, and the mark below which its tables go; from then on it is edited by hand.

    Args:
        name: of the family.
        found: seeds of each folder of results.
        first: there is no other such family on the page: begin with what holds for all of them.
    """
    title, text = SECTIONS[name]
    commands = [command for label, seeds in found.items() if (command := command_of(name, label, seeds))]
    commands.append(f"python -m mbrl_lightning.report runs/{name} out=report/{name}")
    block = "\n".join(["```bash", *commands, "```"])
    return "\n".join(
        [
            *([INTRODUCTION] if first else []),
            f"## {title}\n",
            f"{textwrap.fill(text, 128)}\n",
            f"{block}\n",
            f"<!-- table: {name} -->",
        ]
    )


def command_of(name: str, label: str, seeds: Sequence[int]) -> str | None:
    """The command behind a folder of results; None where its name does not tell."""
    whole = list(seeds) == list(range(len(seeds)))
    which = f"seeds=0..{len(seeds) - 1}" if whole else f"seeds=[{','.join(map(str, seeds))}]"
    begin = f"python -m mbrl_lightning.fit conf={name} algorithm="
    if label in available("algorithm"):
        return f"{begin}{label} {which}"
    for pattern, words in VARIANTS.items():
        if re.fullmatch(pattern, label):
            return f"{begin}{re.sub(pattern, words, label)} {which} out=runs/{label}"
    return None
