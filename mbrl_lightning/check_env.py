"""Check a task family: ``python -m mbrl_lightning.check_env cartpole`` or ``env.file=PATH``; see --help."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mbrl_lightning.config.console import answer
from mbrl_lightning.config.schema import ENVIRONMENTS
from mbrl_lightning.config.words import read, yaml_values
from mbrl_lightning.errors import MBRLError, did_you_mean

if TYPE_CHECKING:  # PyTorch takes seconds to import; --help must not
    import torch

    from mbrl_lightning.envs.family import TaskFamily
    from mbrl_lightning.envs.spec import Simulator

HELP = """usage: python -m mbrl_lightning.check_env NAME [env.options.KEY=VALUE ...]
       python -m mbrl_lightning.check_env env.file=PATH [env.options.KEY=VALUE ...]

Checks a task family before anything is trained on it: shapes, fixed and unseen test tasks, repeatability
under a seed, finite episodes, state restoring, reward against the environment's own, the dynamics target and
its inverse, and that every parameter really changes the motion. PATH is a Python file with a function
family() -> TaskFamily.
One line per check. Exit status: 0 all passed, 2 usage, 3 a check failed."""

TASKS, STEPS = 4, 30
OPTIONS = "env.options."


class Check(NamedTuple):
    """One line of the report."""

    name: str
    passed: bool
    detail: str


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return answer(argv, lambda: HELP, _command)


def _command(argv: list[str]) -> int:
    family = _load(argv)
    checks = []
    for check in check_family(family):
        checks.append(check)
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<12} {check.detail}", flush=True)
    failed = [check.name for check in checks if not check.passed]
    print(f"{family.spec.name}: {len(checks) - len(failed)} of {len(checks)} checks passed.")
    return 3 if failed else 0


def _load(argv: list[str]) -> TaskFamily:
    words = read(argv)
    names, words.bare = words.bare, []
    values = yaml_values(words)
    names += [str(values.pop("env.name"))] if "env.name" in values else []
    file = values.pop("env.file", None)
    options = {key.removeprefix(OPTIONS): value for key, value in values.items() if key.startswith(OPTIONS)}
    words.problems += [f"{key}: unknown key" for key in values if not key.startswith(OPTIONS)]
    words.problems += [
        f"{name}: unknown{did_you_mean(name, ENVIRONMENTS)}" for name in names if name not in ENVIRONMENTS
    ]
    if len(names) + (file is not None) != 1:
        words.problems.append(f"{len(names)} family names and env.file={file}: give one name or one file")
    words.raise_problems(f"give NAME, env.file=PATH or {OPTIONS}KEY=VALUE; families: {', '.join(ENVIRONMENTS)}")
    from mbrl_lightning.envs import load_family, make_family

    return make_family(names[0], **options) if file is None else load_family(str(file), **options)


def check_family(family: TaskFamily) -> Iterator[Check]:
    """Run all checks on ``family``; a check that raises one of our errors counts as failed."""
    checks: list[Callable[[TaskFamily], Check]] = [
        _splits, _training, _shapes, _seeding, _episode, _masking, _state, _reward, _termination, _target,
        _parameters,
    ]  # fmt: skip
    for check in checks:
        try:
            yield check(family)
        except MBRLError as error:
            yield Check(check.__name__.strip("_"), False, str(error).replace("\n", " "))


def _generator(seed: int = 0) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)


class Transitions(NamedTuple):
    """Random-policy transitions, each tensor [steps, tasks, ...], and the simulator they ended in."""

    observation: torch.Tensor
    action: torch.Tensor
    following: torch.Tensor
    own_reward: torch.Tensor | None
    own_terminated: torch.Tensor | None
    simulator: Simulator


def _transitions(family: TaskFamily, steps: int = STEPS) -> Transitions:
    """Random-policy steps; rows start anew on the step after their termination."""
    import torch

    from mbrl_lightning.envs.gym_simulator import GymSimulator

    simulator, generator = family.simulate(family.test[:TASKS]), _generator()
    observation = following = simulator.reset(generator)
    rows, own = [], []
    for step in range(steps):
        ended = family.spec.termination(following)
        observation = simulator.reset(generator, ended) if step and ended.any() else following
        action = family.spec.random_action((simulator.batch_size,), generator)
        following = simulator.step(action)
        rows.append((observation, action, following))
        if isinstance(simulator, GymSimulator):
            own.append((simulator.last_reward.clone(), simulator.last_terminated.clone()))
    parts = [torch.stack(part) for part in zip(*rows, strict=True)]
    reward, terminated = [torch.stack(part) for part in zip(*own, strict=True)] if own else [None, None]
    return Transitions(parts[0], parts[1], parts[2], reward, terminated, simulator)


def _splits(family: TaskFamily) -> Check:
    family.check_disjoint()
    width = len(family.parameters)
    parts = {"test": family.test, "extreme": family.extreme}
    bad = [n for n, t in parts.items() if t.ndim != 2 or (len(t) and t.shape[1] != width) or not t.isfinite().all()]
    known = family.sample(1000, _generator(1))
    same = bool(((family.test[:, None] - known[None]).abs().amax(-1) < 1e-9).any())
    sizes = f"{len(family.test)} test and {len(family.extreme)} extreme tasks of {width} parameters"
    detail = f"{sizes}; {'some are' if same else 'unlike all'} training tasks{', by design' * family.shared_tasks}"
    return Check("splits", not bad and same == family.shared_tasks and len(family.test) > 0, detail)


def _training(family: TaskFamily) -> Check:
    first, second = family.sample(200, _generator()), family.sample(200, _generator())
    scaled = family.scale(first).abs().amax().item()
    good = first.equal(second) and first.shape == (200, len(family.parameters)) and scaled <= 1.5
    return Check("training", good, f"repeatable draws; scaled parameters within +-{scaled:.2f} (should be about 1)")


def _shapes(family: TaskFamily) -> Check:
    import torch

    spec, simulator = family.spec, family.simulate(family.test[:TASKS])
    observation = simulator.reset(_generator())
    action = spec.random_action((simulator.batch_size,), _generator())
    following, expected = simulator.step(action), (simulator.batch_size, spec.observation_dim)
    deep = observation.expand(2, 3, *expected)
    reward = spec.reward(deep, action.expand(2, 3, *action.shape), deep)
    good = observation.shape == following.shape == expected and observation.dtype == following.dtype == torch.float32
    good &= reward.shape == deep.shape[:-1] and spec.features(deep).shape == (
        *deep.shape[:-1],
        spec.feature_dim,
    )
    good &= spec.target(deep, deep).shape == (*deep.shape[:-1], spec.target_dim)
    detail = f"observation {spec.observation_dim}, features {spec.feature_dim}, target {spec.target_dim}"
    return Check("shapes", good, f"{detail}, action {spec.action_dim}{' (one-hot)' if spec.discrete else ''}")


def _seeding(family: TaskFamily) -> Check:
    first, second = _transitions(family).following, _transitions(family).following
    return Check("seeding", first.equal(second), f"two runs of {STEPS} steps from one seed agree bit for bit")


def _episode(family: TaskFamily) -> Check:
    start = time.perf_counter()
    observation = _transitions(family, family.spec.horizon).following  # raises where an observation is not finite
    speed = observation.shape[0] * observation.shape[1] / (time.perf_counter() - start)
    largest = observation.abs().amax().item()
    return Check(
        "episode",
        True,
        f"{family.spec.horizon} random steps finite, |obs| <= {largest:.3g}, {speed:.0f} steps/s",
    )


def _masking(family: TaskFamily) -> Check:
    import torch

    _, action, observation, _, _, simulator = _transitions(family)
    mask = torch.arange(simulator.batch_size) % 2 == 0
    kept = simulator.step(action[0], mask)[~mask].equal(observation[-1][~mask])
    kept &= simulator.reset(_generator(), mask)[~mask].equal(observation[-1][~mask])
    return Check("masking", kept, "rows outside the mask keep their observation")


def _state(family: TaskFamily) -> Check:
    _, action, _, _, _, simulator = _transitions(family)
    saved = simulator.state()
    first = [simulator.step(a) for a in action]
    simulator.set_state(saved)
    good = all(simulator.step(a).equal(kept) for a, kept in zip(action, first, strict=True))
    return Check("state", good, f"{STEPS} steps after set_state(state()) agree bit for bit")


def _reward(family: TaskFamily) -> Check:
    data = _transitions(family)
    reward, error = family.spec.reward(data.observation, data.action, data.following), 0.0
    detail = f"within [{reward.min():.3g}, {reward.max():.3g}]; the only definition there is"
    if data.own_reward is not None:
        error = (reward - data.own_reward).abs().max().item()
        detail = f"differs from the environment's own by {error:.2g} at most"
    return Check("reward", bool(reward.isfinite().all()) and error <= 1e-3 * (1 + reward.abs().max().item()), detail)


def _termination(family: TaskFamily) -> Check:
    import torch

    spec, data = family.spec, _transitions(family)
    ended = spec.termination(data.following)
    good = ended.dtype == torch.bool and ended.shape == data.following.shape[:-1]
    detail = f"{int(ended.sum())} of {ended.numel()} random steps end"
    if spec.training_termination is not None:
        detail += f", training is cut at {int(spec.training_termination(data.following).sum())}"
    if data.own_terminated is not None:
        good &= ended.equal(data.own_terminated)
        detail += f", the environment's own: {int(data.own_terminated.sum())}"
    return Check("termination", good, detail)


def _target(family: TaskFamily) -> Check:
    data = _transitions(family)
    observation, following = data.observation.double(), data.following.double()
    change = family.spec.target(observation, following)
    rebuilt = family.spec.untarget(observation, change)
    again = (family.spec.target(observation, rebuilt) - change).abs().max().item()
    # In features, since angles may come back a full turn away.
    features = family.spec.features
    moved = (features(following) - features(observation)).square().mean((0, 1))
    left = (features(rebuilt) - features(following)).square().mean((0, 1))
    share = (left / moved.clamp_min(1e-12)).sqrt().max().item()
    detail = f"target(untarget) exact to {again:.1g}; untarget(target) leaves {share:.2%} of the step at most"
    return Check("target", again < 1e-4 and share < 0.5, detail)


def _parameters(family: TaskFamily) -> Check:
    import torch

    drawn = family.sample(200, _generator())
    base, effect = drawn[:1], {}
    tasks = base.repeat(len(family.parameters) + 1, 1)
    for j in range(len(family.parameters)):
        column = drawn[:, j]
        tasks[j + 1, j] = column[(column - base[0, j]).abs().argmax()]
    # Simulators of one row each, so that all get the same initial state and actions.
    runs = []
    for task in tasks:
        simulator, generator = family.simulate(task[None]), _generator(2)
        rows = [simulator.reset(generator)]
        rows += [simulator.step(family.spec.random_action((1,), generator)) for _ in range(STEPS)]
        runs.append(torch.cat(rows))
    for name, run in zip(family.parameters, runs[1:], strict=True):
        effect[name] = (run - runs[0]).abs().max().item()
    detail = ", ".join(f"{name} {value:.2g}" for name, value in effect.items())
    near = [value for name, value in effect.items() if name not in family.distant]
    return Check(
        "parameters",
        min(near, default=1.0) > 1e-6,
        f"largest change of an observation in {STEPS} steps: {detail}",
    )


if __name__ == "__main__":
    sys.exit(main())
