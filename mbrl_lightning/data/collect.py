"""Real interaction: a policy steps a batch of simulators, one TensorDict comes back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec, Simulator, never

Act = Callable[[Tensor], Tensor]
"""Observations `[B, S]` -> actions `[B, A]` (in [-1, 1], or one-hot)."""


def random_actions(spec: EnvSpec, generator: torch.Generator) -> Act:
    """The exploration policy pi_e of the papers: uniform over the action space, blind to the observation."""

    def act(observation: Tensor) -> Tensor:
        return spec.random_action((len(observation),), generator)

    return act


@torch.no_grad()
def collect(
    simulator: Simulator, spec: EnvSpec, act: Act, steps: int, generator: torch.Generator, training: bool = True
) -> TensorDict:
    """Step B tasks for T = `steps` steps from fresh initial states.

    In training an episode ends at termination, at the family's training termination (a fall) or at its horizon, and a new
    one begins at once, so all T steps of a row are real data. In evaluation there is one episode a row: after termination
    the row stands still, with reward 0 and `valid` false.

    Args:
        simulator: B environments.
        spec: rewards and terminations.
        act: the policy.
        steps: T.
        generator: draws the initial states.
        training: see above.

    Returns:
        Batch `[B, T]`: `observation`, `action`, `initial` (first step of an episode), `valid`, and under `next`
        `observation` (before any reset), `reward`, `terminated`, `truncated`, `done`, `[..., 1]` each.

    Raises:
        EnvError: the environment raised or gave a non-finite observation.
    """
    observation = simulator.reset(generator)
    alive = torch.ones(len(observation), dtype=torch.bool)
    nobody, born, due = ~alive, torch.zeros(len(alive), dtype=torch.long), spec.horizon
    rules = [] if spec.termination is never else [spec.termination]
    rules += [spec.training_termination] if training and spec.training_termination is not None else []
    rows: list[tuple[Tensor, ...]] = []
    for now in range(1, steps + 1):
        action = act(observation)
        following = simulator.step(action) if training or bool(alive.all()) else simulator.step(action, alive)
        terminated = done = nobody
        if rules or now >= due:  # where only time ends episodes, it is asked only when time is due
            for rule in rules:
                terminated = terminated | rule(following)
            done = terminated | (now - born >= spec.horizon)
        rows.append((observation, action, following, terminated, done, alive))
        observation = following
        if done is not nobody and bool(done.any()):
            if training:
                observation = simulator.reset(generator, done)
                born[done] = now
                due = int(born.min()) + spec.horizon
            else:
                alive = alive & ~done
                if not bool(alive.any()):
                    break
    return _assemble(spec, rows, training)


def _assemble(spec: EnvSpec, rows: list[tuple[Tensor, ...]], training: bool) -> TensorDict:
    columns = [torch.stack(column, 1) for column in zip(*rows, strict=True)]
    observation, action, following, terminated, done, valid = columns
    initial = torch.zeros_like(done)
    initial[:, 0] = True
    if training:
        initial[:, 1:] = done[:, :-1]
    if not spec.discrete:
        action = action.clamp(-1, 1)
    reward = spec.reward(observation, action, following) * valid
    flags = {"terminated": terminated, "truncated": done & ~terminated, "done": done}
    after = {"observation": following, "reward": reward.unsqueeze(-1)} | {k: v.unsqueeze(-1) for k, v in flags.items()}
    return TensorDict(
        {
            "observation": observation,
            "action": action,
            "initial": initial,
            "valid": valid,
            "next": TensorDict(after, batch_size=reward.shape),
        },
        batch_size=reward.shape,
    )


def episode_returns(episodes: TensorDict, spec: EnvSpec) -> Tensor:
    """Return of each evaluation episode `[B, T] -> [B]` in the family's unit: sum, or mean per step of the horizon."""
    total = episodes["next", "reward"].squeeze(-1).sum(-1)
    return total / spec.horizon if spec.unit == "step" else total
