"""An agent's entry points as graphs of named tensors (`torch.export`), and as ONNX: no method knows of it.

A belief is a TensorDict, so its entries are the inputs `belief.NAME` and the outputs `after.NAME`. Nothing in a graph is drawn:
actions are the best that the policy knows, and a planner's candidates are the same at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode

import mbrl_lightning
from mbrl_lightning.agent import Agent
from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.data.buffer import blocks_of
from mbrl_lightning.data.collect import consecutive, transition
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.export.parity import PARTS
from mbrl_lightning.runs import checkpoint

Arrays = dict[str, Any]
STEPS, FEW = 100, 6
GIVEN = {"begin": (), "act": ("observation",)} | dict.fromkeys(
    ("adapt", "step"), ("observation", "action", "next_observation")
)
DRAWING = (torch.randn, torch.rand, torch.randint)


class Draws(TorchFunctionMode):
    """What is drawn inside is kept in `drawn`, or is what is given here, in order."""

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.given, self.drawn = None if given is None else iter(given), list[Tensor]()

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in DRAWING and self.given is not None:
            return next(self.given).clone()
        out = function(*args, **(kwargs or {}))
        self.drawn += [out.clone()] if function in DRAWING else []
        return out


class Graph(nn.Module):
    """One part of an agent: tensors in the order of `inputs`, `[n, ...]` each, to those in the order of `outputs`.

    `like` is a belief with the entries that all parts carry.
    """

    def __init__(self, algorithm: Algorithm, part: str, like: TensorDict) -> None:
        super().__init__()
        self.algorithm, self.part, self.rows = algorithm, part, len(like)
        self.keys = list(like.keys(True, True))
        names = [".".join(key) if isinstance(key, tuple) else key for key in self.keys]
        carried = [] if part == "begin" else [f"belief.{name}" for name in names]
        self.inputs = [*GIVEN[part], *carried]
        self.outputs = ["action"] * (part == "act") + [f"after.{name}" for name in names]
        self.count = 0

    def fix_draws(self, values: Sequence[Tensor]) -> None:
        """Make constants of what is drawn with these inputs."""
        with Draws() as draws:
            self.run(*values)
        for number, drawn in enumerate(draws.drawn):
            self.register_buffer(f"draw{number}", drawn)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        with Draws(list(self.buffers(recurse=False))):
            return self.run(*values)

    @torch.no_grad()
    def run(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The same, with draws of its own."""
        algorithm, spec = self.algorithm, self.algorithm.spec
        if self.part == "begin":
            return self.flat(algorithm.begin(self.rows))
        count = len(GIVEN[self.part])
        belief, observation = self.nested(values[count:]), values[0]
        if self.part == "act":
            noise = torch.Generator().manual_seed(0) if "plan" in belief.keys() else None  # noqa: SIM118
            action, belief = algorithm.act(belief, observation, noise)
            action = action.argmax(-1) if spec.discrete else action.clamp(-1, 1)
            return action, *self.flat(belief)
        taken = one_hot(values[1], spec.action_dim).float() if spec.discrete else values[1].clamp(-1, 1)
        seen = transition(observation, taken, values[2])
        if self.part == "adapt":
            seen = consecutive(spec, observation, taken, values[2])
        return self.flat(algorithm.adapt(belief, seen))

    def nested(self, values: Sequence[Tensor]) -> TensorDict:
        """The belief of its entries."""
        belief = TensorDict({}, batch_size=[self.rows])
        for key, value in zip(self.keys, values, strict=True):
            belief[key] = value
        return belief

    def flat(self, belief: TensorDictBase) -> tuple[Tensor, ...]:
        """The entries of a belief."""
        return tuple(belief[key] for key in self.keys)


class Exporter:
    """Graphs of an agent in n = `rows` environments, traced on what it meets in unseen tasks of its family.

    Raises:
        ConfigError: the method's belief cannot be the input of a graph.
    """

    def __init__(self, agent: Agent, rows: int) -> None:
        self.agent, self.algorithm, self.rows = agent, agent.algorithm.eval().requires_grad_(False), rows
        self.tasks = agent.family.test[torch.arange(rows) % len(agent.family.test)]
        # 0: it learns nothing from a context; one that is tested without may still learn from the family's
        self.context = self.algorithm.shots(False)[0] or max(self.algorithm.shots(True))
        self.seen = agent.explore(self.tasks, max(self.context, FEW))
        begun, few, more = (self.believed(count) for count in (0, 3, 5))
        self.begun, self.like = begun, few
        if strange := {*few.keys(True, True)} - {*begun.keys(True, True)}:
            names = ", ".join(sorted(".".join(key) if isinstance(key, tuple) else key for key in strange))
            raise self.refusal(f"it believes nothing of {names} before it has adapted")
        # which dimensions of a belief count the transitions that it knows
        self.growing = [
            {at for at, size in enumerate(few[key].shape) if size != more[key].shape[at]}
            for key in few.keys(True, True)
        ]
        graphs = {part: Graph(self.algorithm, part, few) for part in PARTS}
        before = graphs["step"].flat(few)
        after = graphs["step"](*self.given("step", 1), *before)
        useless = {"adapt"} if not self.context else set()
        useless |= {"step"} if all(a is b for a, b in zip(before, after, strict=True)) else set()
        self.graphs = {part: graph for part, graph in graphs.items() if part not in useless}

    def refusal(self, why: str, instead: str = "") -> ConfigError:
        """What is said of a method that cannot be exported, or not so."""
        cause = f"algorithm={self.algorithm.cfg.algorithm} cannot be exported: {why}"
        return ConfigError(cause, f"{instead}use the run where PyTorch is, by mbrl_lightning.load(run)")

    def transitions(self, pick: Any) -> Arrays:
        """Of the explored transitions `[n, K]` those that are meant, by the names that graphs have for them."""
        seen = self.seen[:, pick]
        return {name: seen[("next", "observation") if name.startswith("next") else name] for name in GIVEN["step"]}

    def believed(self, count: int) -> TensorDict:
        """The belief after a context of so many transitions."""
        context, belief = self.transitions(slice(0, count)), self.agent.begin(self.rows)
        after = {"next": {"observation": context["next_observation"]}}
        belief = self.agent.adapt(belief, context | after) if self.context and count else belief
        return belief.exclude("owner")

    def given(self, part: str, count: int) -> list[Tensor]:
        """What a part is given beside the belief: a step, or a context of `count` transitions."""
        seen = self.transitions(slice(0, count) if part == "adapt" else 0)
        return [seen[name].clone() for name in GIVEN[part]]

    @torch.no_grad()
    def program(self, part: str) -> tuple[torch.export.ExportedProgram, list[Tensor], list[set[int]]]:
        """The program of a part, what it was traced with, and which dimensions of its inputs are free.

        Those that count transitions are free where the method allows it, else a context has the family's length.
        """
        graph, free = self.graphs[part], [{1} if part == "adapt" else set() for _ in GIVEN[part]]
        free += [] if part == "begin" else self.growing
        values = [*self.given(part, FEW), *([] if part == "begin" else graph.flat(self.like))]
        graph.fix_draws(values)
        shapes = tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in free)
        try:
            return torch.export.export(graph, tuple(values), dynamic_shapes=(shapes,), strict=False), values, free
        except Exception:  # it takes gradients, or counts steps one by one
            values = [*self.given(part, self.context), *([] if part == "begin" else graph.flat(self.begun))]
        try:
            module = make_fx(lambda *given: graph(*given), tracing_mode="real")(*values)
            return torch.export.export(module, tuple(values), strict=False), values, [set() for _ in values]
        except Exception as error:
            raise self.refusal(f"its {part} is no graph ({' '.join(str(error).split())[:200]})") from error

    def record(self) -> Arrays:
        """STEPS real steps in unseen tasks after a context, as arrays; see `parity.differences`."""
        agent, belief = self.agent, self.agent.begin(self.rows)
        context = self.transitions(slice(0, self.context))
        if self.context:
            belief = agent.adapt(belief, context | {"next": {"observation": context["next_observation"]}})
        start, envs = belief, [agent.family.make(task) for task in self.tasks]
        rows: list[list[Any]] = []
        for time in range(STEPS):
            if time % agent.spec.horizon == 0:
                observation = np.stack([env.reset(seed=time)[0] for env in envs])
                belief = start.clone(False).update(belief.select("trial", strict=False))
            noise = torch.Generator().manual_seed(0) if "plan" in belief.keys() else None  # noqa: SIM118
            action, belief = agent.act(belief, observation, noise)
            following = np.stack([env.step(taken)[0] for env, taken in zip(envs, action, strict=True)])
            rows.append([observation, action, following])
            step = {"observation": observation, "action": action, "next": {"observation": following}}
            belief, observation = agent.adapt(belief, step), following
        for env in envs:
            env.close()
        steps = dict(zip(GIVEN["step"], map(np.stack, zip(*rows, strict=True)), strict=True))
        return steps | {f"context.{name}": value.numpy() for name, value in context.items()}

    def contract(self, run: Path) -> dict[str, Any]:
        """What whoever calls the files must know, as plain values; `inputs` and `outputs` of the parts come with their graphs."""
        spec, (_, state) = self.agent.spec, checkpoint.load(run / "checkpoints")
        blocks = [rows["observation"] for rows in blocks_of(state.get("world", {}).get("real", {"data": {}}))]
        low = torch.stack([rows.amin(0) for rows in blocks]).amin(0).tolist() if blocks else None
        high = torch.stack([rows.amax(0) for rows in blocks]).amax(0).tolist() if blocks else None
        action = {"numbers": spec.action_dim} if spec.discrete else {"low": -1.0, "high": 1.0, "size": spec.action_dim}
        return {
            "mbrl_lightning": mbrl_lightning.__version__,
            "algorithm": self.algorithm.cfg.algorithm,
            "family": spec.name,
            "parameters": list(self.agent.family.parameters),
            "horizon": spec.horizon,
            "environments": self.rows,
            "context": self.context,
            "observation": {"names": list(spec.observation_names), "seen_low": low, "seen_high": high},
            "action": action,
            "inputs": {},
            "outputs": {},
        }
