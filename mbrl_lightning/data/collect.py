"""Real interaction: an agent steps a batch of simulators, one TensorDict comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.data.control import Control
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec, Simulator, never, require_finite_reward


class Agent(Protocol):
    """What can be put to work in an environment; all that it knows is in the belief, which is handed in and handed back."""

    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """Actions `[B, A]` (in [-1, 1], or one-hot) for observations `[B, S]`, and the belief `[B]` after the choice."""

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The belief after a context of transitions `[B, K]`, or after the one step just made, `[B]`."""


class Uniform:
    """The exploration policy pi_e of the papers: uniform over the action space, blind to the observation.

    Args:
        control: what becomes of its choices.
    """

    def __init__(self, control: Control) -> None:
        self.control = control

    def begin(self, tasks: int) -> TensorDict:
        """Nothing is believed of M = `tasks` tasks."""
        return self.control.begin(TensorDict({}, batch_size=[tasks]))

    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """See `Agent.act`; without a generator draws are from torch's own."""

        def choose(belief: TensorDict) -> tuple[Tensor, TensorDict]:
            drawn = self.control.spec.random_action((len(observation),), noise or torch.default_generator)
            return drawn, belief

        return self.control.act(choose, belief, observation)

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """Nothing is learned."""
        return belief


def collect(
    simulator: Simulator,
    spec: EnvSpec,
    agent: Agent,
    belief: TensorDict,
    steps: int,
    generator: torch.Generator,
    noise: torch.Generator | None = None,
    training: bool = True,
) -> TensorDict:
    """Step B tasks for T = `steps` steps from fresh initial states; see `collect_parts`, of which it is the only part."""
    return next(collect_parts(simulator, spec, agent, belief, steps, generator, steps, noise, training))


def collect_in(
    family: TaskFamily,
    tasks: Tensor,
    agent: Agent,
    belief: TensorDict,
    steps: int,
    generator: torch.Generator,
    noise: torch.Generator | None = None,
    training: bool = True,
) -> TensorDict:
    """`collect` in new simulators of `tasks` `[B, P]` of a family, which are released whatever happens."""
    simulator = family.simulate(tasks)
    try:
        return collect(simulator, family.spec, agent, belief, steps, generator, noise, training)
    finally:
        simulator.close()


@torch.no_grad()  # of a generator: lifted whenever a part is handed over
def collect_parts(
    simulator: Simulator,
    spec: EnvSpec,
    agent: Agent,
    belief: TensorDict,
    steps: int,
    generator: torch.Generator,
    every: int,
    noise: torch.Generator | None = None,
    training: bool = True,
) -> Iterator[TensorDict]:
    """Step B tasks for `steps` steps from fresh initial states, and hand over what was seen every `every` steps.

    In training an episode ends at termination, at the family's training termination (a fall) or at its horizon, and a new
    one begins at once, so all steps of a row are real data. In evaluation there is one episode a row: after termination
    the row stands still, with reward 0 and `valid` false. Every episode begins with the `belief` given here, but for what
    that holds under `trial`: it outlasts a row's episodes.

    Args:
        simulator: B environments.
        spec: rewards and terminations.
        agent: acts; it may change from one part to the next.
        belief: of each row at the start of its episodes, batch `[B]`.
        steps: of each row, in all.
        generator: draws the initial states.
        every: steps of a part, T.
        noise: draws the actions; None asks for the best ones.
        training: see above.

    Yields:
        Batch `[B, T]`: `observation`, `action`, `initial` (first step of an episode), `age` (steps since then), `episode`
        (its number in this call), `valid`, `hidden` (the task in force, where the simulator switches it; for reports, never
        for a policy), `taken` and `command` (what the agent left in the belief of its choice, if anything), and under `next`
        `observation` (before any reset), `reward`, `terminated`, `truncated`, `done`, `[..., 1]` each.

    Raises:
        EnvError: the environment raised or gave a non-finite observation or reward.
        DivergedError: the policy gave a non-finite action.
    """
    observation, start = simulator.reset(generator), belief
    alive = torch.ones(len(observation), dtype=torch.bool)
    nobody, born, due = ~alive, torch.zeros(len(alive), dtype=torch.long), spec.horizon
    episode = torch.arange(len(alive))
    rules = [] if spec.termination is never else [spec.termination]
    rules += [spec.training_termination] if training and spec.training_termination is not None else []
    hidden = getattr(simulator, "tasks", None) is not None
    rows: list[dict[str, Tensor]] = []
    for now in range(1, steps + 1):
        action, belief = agent.act(belief, observation, noise)
        row = {"observation": observation, "valid": alive, "born": born, "episode": episode}
        row |= {key: belief[key] for key in ("taken", "command") if key in belief.keys()}  # noqa: SIM118
        if hidden:
            row["hidden"] = simulator.tasks.clone()  # type: ignore[attr-defined]
        following = simulator.step(action) if training or bool(alive.all()) else simulator.step(action, alive)
        belief = agent.adapt(belief, transition(observation, action, following))
        terminated = done = nobody
        if rules or now >= due:  # where only time ends episodes, it is asked only when time is due
            for rule in rules:
                terminated = terminated | rule(following)
            done = terminated | (now - born >= spec.horizon)
        rows.append(row | {"action": action, "following": following, "terminated": terminated, "done": done})
        observation, finished = following, now == steps
        if done is not nobody and bool(done.any()):
            if training:
                observation = simulator.reset(generator, done)
                born = torch.where(done, now, born)
                episode = torch.where(done, episode + len(alive), episode)
                due = int(born.min()) + spec.horizon
                belief = belief if belief is start else begun_anew(belief, start, done)
            else:
                alive = alive & ~done
                finished = finished or not bool(alive.any())
        if finished or len(rows) == every:
            yield _assemble(spec, rows, now)
            rows = []
        if finished:
            return


def transition(observation: Tensor, action: Tensor, following: Tensor) -> TensorDict:
    """The one step just made, batch `[B]`, with the action as the environment took it."""
    batch = observation.shape[:1]
    after = TensorDict({"observation": following}, batch_size=batch)
    return TensorDict({"observation": observation, "action": action.clamp(-1, 1), "next": after}, batch_size=batch)


def consecutive(spec: EnvSpec, observation: Tensor, action: Tensor, following: Tensor) -> TensorDict:
    """Consecutive transitions `[B, K]` of which no more is known, with what `collect` would have said of them.

    An episode has ended where the family terminates, or where the next step does not begin in what was observed last.
    """
    action, terminated = action.clamp(-1, 1), spec.termination(following)
    jumped = torch.zeros_like(terminated)
    jumped[:, :-1] = (following[:, :-1] != observation[:, 1:]).any(-1)
    done, now = terminated | jumped, torch.arange(observation.shape[1], device=observation.device)
    initial = torch.cat([torch.ones_like(done[:, :1]), done[:, :-1]], 1)
    after = {"reward": spec.reward(observation, action, following)}
    after |= {"terminated": terminated, "truncated": done & ~terminated, "done": done}
    after = {"observation": following} | {name: value.unsqueeze(-1) for name, value in after.items()}
    data = {"observation": observation, "action": action, "initial": initial, "valid": torch.ones_like(done)}
    data |= {"age": now - (now * initial).cummax(1).values, "next": TensorDict(after, batch_size=done.shape)}
    return TensorDict(data, batch_size=done.shape)


def begun_anew(belief: TensorDict, start: TensorDict, rows: Tensor) -> TensorDict:
    """The belief `[B]` with that of the `start` in some rows, bool `[B]`."""

    def put_back(first: Tensor, now: Tensor) -> Tensor:
        if first is now:  # acting left it as it was
            return first
        return torch.where(rows.to(first.device).view(-1, *[1] * (first.ndim - 1)), first, now)

    once = [key for key in start.keys() if key != "trial"]  # noqa: SIM118
    begun = start.select(*once).apply(put_back, belief.select(*once))
    return begun.update(belief.select("trial", strict=False))


def _assemble(spec: EnvSpec, rows: list[dict[str, Tensor]], now: int) -> TensorDict:
    data = {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}
    following, terminated, done, born = (data.pop(name) for name in ("following", "terminated", "done", "born"))
    data["age"] = torch.arange(now - len(rows), now) - born
    data["initial"], data["action"] = data["age"] == 0, data["action"].clamp(-1, 1)
    reward = spec.reward(data["observation"], data["action"], following) * data["valid"]
    require_finite_reward(spec, reward)
    flags = {"terminated": terminated, "truncated": done & ~terminated, "done": done}
    after = {"observation": following, "reward": reward.unsqueeze(-1)} | {k: v.unsqueeze(-1) for k, v in flags.items()}
    return TensorDict(data | {"next": TensorDict(after, batch_size=reward.shape)}, batch_size=reward.shape)


def episode_returns(episodes: TensorDict, spec: EnvSpec) -> Tensor:
    """Return of each evaluation episode `[B, T] -> [B]` in the family's unit: sum, or mean per step of the horizon."""
    total = episodes["next", "reward"].squeeze(-1).sum(-1)
    return total / spec.horizon if spec.unit == "step" else total
