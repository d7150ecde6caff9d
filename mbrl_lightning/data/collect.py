"""Real interaction: a policy steps a batch of simulators, one TensorDict comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec, Simulator, never, require_finite_reward

Act = Callable[[Tensor], Tensor]
"""Observations `[B, S]` -> actions `[B, A]` (in [-1, 1], or one-hot).

An Act with memory also has `begin(rows)`: `collect` calls it with the rows `[B]` that are about to start an episode.
"""


def random_actions(spec: EnvSpec, generator: torch.Generator, hold: int = 1) -> Act:
    """The exploration policy pi_e of the papers: uniform over the action space, blind to the observation.

    Args:
        spec: the action space.
        generator: draws the actions.
        hold: steps for which a drawn action is kept; with 1 it is drawn anew each step.
    """
    kept: list[Tensor] = []

    def act(observation: Tensor) -> Tensor:
        if not kept:
            kept.extend([spec.random_action((len(observation),), generator)] * hold)
        return kept.pop()

    return act


def collect(
    simulator: Simulator, spec: EnvSpec, act: Act, steps: int, generator: torch.Generator, training: bool = True
) -> TensorDict:
    """Step B tasks for T = `steps` steps from fresh initial states; see `collect_parts`, of which it is the only part."""
    return next(collect_parts(simulator, spec, act, steps, generator, steps, training))


@torch.no_grad()  # of a generator: lifted whenever a part is handed over
def collect_parts(
    simulator: Simulator,
    spec: EnvSpec,
    act: Act,
    steps: int,
    generator: torch.Generator,
    every: int,
    training: bool = True,
) -> Iterator[TensorDict]:
    """Step B tasks for `steps` steps from fresh initial states, and hand over what was seen every `every` steps.

    In training an episode ends at termination, at the family's training termination (a fall) or at its horizon, and a new
    one begins at once, so all steps of a row are real data. In evaluation there is one episode a row: after termination
    the row stands still, with reward 0 and `valid` false.

    Args:
        simulator: B environments.
        spec: rewards and terminations.
        act: the policy; it may change from one part to the next.
        steps: of each row, in all.
        generator: draws the initial states.
        every: steps of a part, T.
        training: see above.

    Yields:
        Batch `[B, T]`: `observation`, `action`, `initial` (first step of an episode), `age` (steps since then), `episode`
        (its number in this call), `valid`, `hidden` (the task in force, where the simulator switches it; for reports, never
        for a policy), and under `next` `observation` (before any reset), `reward`, `terminated`, `truncated`, `done`,
        `[..., 1]` each.

    Raises:
        EnvError: the environment raised or gave a non-finite observation or reward.
        DivergedError: the policy gave a non-finite action.
    """
    observation = simulator.reset(generator)
    alive = torch.ones(len(observation), dtype=torch.bool)
    nobody, born, due = ~alive, torch.zeros(len(alive), dtype=torch.long), spec.horizon
    episode = torch.arange(len(alive))
    rules = [] if spec.termination is never else [spec.termination]
    rules += [spec.training_termination] if training and spec.training_termination is not None else []
    begin, hidden = getattr(act, "begin", None), getattr(simulator, "tasks", None) is not None
    if begin is not None:
        begin(alive)
    rows: list[tuple[Tensor, ...]] = []
    for now in range(1, steps + 1):
        action = act(observation)
        task = simulator.tasks.clone() if hidden else nobody  # type: ignore[attr-defined]
        following = simulator.step(action) if training or bool(alive.all()) else simulator.step(action, alive)
        terminated = done = nobody
        if rules or now >= due:  # where only time ends episodes, it is asked only when time is due
            for rule in rules:
                terminated = terminated | rule(following)
            done = terminated | (now - born >= spec.horizon)
        rows.append((observation, action, following, terminated, done, alive, born, episode, task))
        observation, finished = following, now == steps
        if done is not nobody and bool(done.any()):
            if training:
                observation = simulator.reset(generator, done)
                born = torch.where(done, now, born)
                episode = torch.where(done, episode + len(alive), episode)
                due = int(born.min()) + spec.horizon
                if begin is not None:
                    begin(done)
            else:
                alive = alive & ~done
                finished = finished or not bool(alive.any())
        if finished or len(rows) == every:
            yield _assemble(spec, rows, hidden, now)
            rows = []
        if finished:
            return


def _assemble(spec: EnvSpec, rows: list[tuple[Tensor, ...]], hidden: bool, now: int) -> TensorDict:
    columns = [torch.stack(column, 1) for column in zip(*rows, strict=True)]
    observation, action, following, terminated, done, valid, born, episode, task = columns
    age = torch.arange(now - len(rows), now) - born
    if not spec.discrete:
        action = action.clamp(-1, 1)
    reward = spec.reward(observation, action, following) * valid
    require_finite_reward(spec, reward)
    flags = {"terminated": terminated, "truncated": done & ~terminated, "done": done}
    after = {"observation": following, "reward": reward.unsqueeze(-1)} | {k: v.unsqueeze(-1) for k, v in flags.items()}
    data = {"observation": observation, "action": action, "initial": age == 0, "age": age, "episode": episode}
    data |= {"valid": valid} | ({"hidden": task} if hidden else {})
    return TensorDict(data | {"next": TensorDict(after, batch_size=reward.shape)}, batch_size=reward.shape)


def episode_returns(episodes: TensorDict, spec: EnvSpec) -> Tensor:
    """Return of each evaluation episode `[B, T] -> [B]` in the family's unit: sum, or mean per step of the horizon."""
    total = episodes["next", "reward"].squeeze(-1).sum(-1)
    return total / spec.horizon if spec.unit == "step" else total
