"""Environments so simple that every number they give is known beforehand, and fingerprints of what a run holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms import ALGORITHMS
from mbrl_lightning.config import flattened, reads_of
from mbrl_lightning.config.schema import FIELDS
from mbrl_lightning.config.words import read, yaml_values
from mbrl_lightning.data.collect import Uniform, collect
from mbrl_lightning.data.control import Control
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec

# what every method is tried with: its `debug` sizes, and some families and sizes of another kind
HIDDEN = {"name": "point_switch", "options": {"horizon": 20}}
DISCRETE = {"name": "acrobot", "options": {}}
VARIANTS = {name: (name, {}) for name in ALGORITHMS} | {
    "pearl-hidden": ("pearl", {"env": HIDDEN}),
    "m3po-hidden": ("m3po", {"env": HIDDEN}),
    "gssm_aps-discrete": ("gssm_aps", {"env": DISCRETE, "search": {"method": "ppo"}}),
    "gssm_aps-ensemble": ("gssm_aps", {"dynamics": {"members": 2}}),
    "gssm_aps-learned": ("gssm_aps", {"env": {"learned_reward": True}}),
}


def generator(seed: int = 0) -> torch.Generator:
    """A stream of its own."""
    return torch.Generator().manual_seed(seed)


def plain_spec(observation: int = 3, action: int = 2, horizon: int = 10, **fields: Any) -> EnvSpec:
    """Identity features and differences as targets; the reward is the sum of the actions unless given."""
    fields = {"unit": "step", "reward": lambda o, a, n: a.sum(-1)} | fields
    names = tuple(f"s{i}" for i in range(observation))
    return EnvSpec("plain", names, action_dim=action, horizon=horizon, **fields)


class CounterSimulator:
    """Counts: every step adds one. Observation (count, task); an episode starts at 100 x a random number below 5."""

    def __init__(self, tasks: Tensor) -> None:
        self.batch_size, self.task = len(tasks), tasks[:, 0].float()
        self.count = torch.zeros(self.batch_size)
        self.stepped = torch.zeros(self.batch_size, dtype=torch.long)

    def _observe(self) -> Tensor:
        return torch.stack([self.count, self.task], -1)

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        fresh = 100.0 * torch.randint(5, (self.batch_size,), generator=generator)
        self.count = fresh if mask is None else torch.where(mask, fresh, self.count)
        return self._observe()

    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        moved = torch.ones(self.batch_size) if mask is None else mask.float()
        self.count = self.count + moved
        self.stepped += moved.long()
        return self._observe()

    def state(self) -> Tensor:
        return self._observe().double()

    def set_state(self, state: Tensor) -> None:
        self.count, self.task = state.float().unbind(-1)

    def render(self, index: int = 0) -> Any:
        raise RuntimeError("there is nothing to see")

    def close(self) -> None:
        pass


def counter_spec(horizon: int = 8, **fields: Any) -> EnvSpec:
    """The counter's spec: reward 1 a step; nothing ends before the horizon unless `fields` say so."""
    fields = {"unit": "step", "reward": lambda o, a, n: torch.ones_like(n[..., 0])} | fields
    return EnvSpec("counter", ("count", "task"), action_dim=1, horizon=horizon, **fields)


def counter_family(horizon: int = 8, **fields: Any) -> TaskFamily:
    """Tasks are one number in [1, 6], shown in the observation."""
    return TaskFamily(
        spec=counter_spec(horizon, **fields),
        parameters=("number",),
        draw=lambda n, generator: 1 + 5 * torch.rand(n, 1, generator=generator, dtype=torch.float64),
        build=CounterSimulator,
        rescale=lambda tasks: (tasks - 3.5) / 2.5,
        test=torch.linspace(1.5, 5.5, 5, dtype=torch.float64).unsqueeze(1),
        context_steps=6,
    )


class Says:
    """An agent that looks at the observation alone, `[B, S] -> [B, A]`, and remembers nothing.

    Args:
        choose: what it does; given the generator too if `noisy`.
    """

    def __init__(self, choose: Callable[..., Tensor], noisy: bool = False) -> None:
        self.choose, self.noisy = choose, noisy

    def begin(self, tasks: int) -> TensorDict:
        return TensorDict({}, batch_size=[tasks])

    def act(self, belief: TensorDict, observation: Tensor, noise: Any = None) -> tuple[Tensor, TensorDict]:
        return self.choose(noise, observation) if self.noisy else self.choose(observation), belief

    def adapt(self, belief: TensorDict, transitions: Any) -> TensorDict:
        return belief


def random_steps(
    family: TaskFamily, tasks: Tensor, steps: int, generator: torch.Generator, training: bool = True, hold: int = 1
) -> TensorDict:
    """Transitions `[M, steps]` of tasks `[M, P]` under random actions."""
    uniform = Uniform(Control(family.spec, hold=hold))
    simulator, start = family.simulate(tasks), uniform.begin(len(tasks))
    return collect(simulator, family.spec, uniform, start, steps, generator, generator, training)


def walk(family: TaskFamily, simulator: Any, steps: int, draws: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    """Before, action and after of random steps from a reset, while the simulator stands where they led."""
    before = simulator.reset(draws)
    for _ in range(steps):
        action = family.spec.random_action((simulator.batch_size,), draws)
        after = simulator.step(action)
        yield before, action, after
        before = after


def shortened(family: TaskFamily, horizon: int | None = None, test: int = 3, context: int | None = None) -> TaskFamily:
    """The same family with fewer test tasks, no extreme ones, and a shorter episode or context if asked for."""
    spec = family.spec if horizon is None else replace(family.spec, horizon=horizon)
    return replace(
        family,
        spec=spec,
        test=family.test[:test],
        extreme=family.extreme[:0],
        context_steps=family.context_steps if context is None else context,
    )


def words(text: str) -> dict[str, Any]:
    """Dotted keys with their values, as they are written on a command line."""
    return yaml_values(read(text.split()))


def read_by(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keys that `changes["algorithm"]` reads; what is no key at all stays, to be refused."""
    reads = reads_of(changes.get("algorithm", "gssm_aps"))
    return {key: value for key, value in flattened(changes).items() if key in reads or key not in FIELDS}


def fingerprint(state: Any, skip: Iterable[str] = ("times",)) -> dict[str, str]:
    """Sha256 of every leaf of nested containers, by dotted path; tensors by dtype, shape and bytes.

    Args:
        state: nested dicts, lists, tuples, tensors and numbers.
        skip: keys left out wherever they occur (wall-clock time differs from run to run).
    """
    out: dict[str, str] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, entry in value.items():
                if key not in skip:
                    visit(entry, f"{path}.{key}")
        elif isinstance(value, (list, tuple)):
            for position, entry in enumerate(value):
                visit(entry, f"{path}.{position}")
        elif isinstance(value, Tensor):
            raw = value.detach().cpu().contiguous()
            head = f"{raw.dtype}{tuple(raw.shape)}".encode()
            out[path] = hashlib.sha256(head + raw.numpy().tobytes()).hexdigest()
        else:
            out[path] = repr(value)

    visit(state, "")
    return out


def measured(rows: Iterable[Any]) -> list[str]:
    """Result rows without wall-clock times, as text (so that NaN equals NaN)."""
    return [repr(row) for row in rows if not row.metric.startswith("time/")]


class StopAfter:
    """A stop flag that goes up once `loop.iteration` reaches `iteration`; bind the loop before fitting."""

    def __init__(self, iteration: int, signal: int = 2) -> None:
        self.iteration, self.signal, self.loop = iteration, signal, None

    @property
    def requested(self) -> int | None:
        return self.signal if self.loop.iteration >= self.iteration else None


def centre_x(model: Any, data: Any) -> float:
    """Exact centre of mass of all bodies along x at the present positions of a MuJoCo body."""
    import mujoco

    scratch = mujoco.MjData(model)
    scratch.qpos[:] = data.qpos
    mujoco.mj_kinematics(model, scratch)
    return float((model.body_mass * scratch.xipos[:, 0]).sum() / model.body_mass.sum())
