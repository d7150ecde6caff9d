"""Check a task family: ``python -m mbrl_lightning.check_env cartpole`` or ``env.file=PATH``; see --help."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mbrl_lightning.config.console import answer
from mbrl_lightning.config.schema import EnvConfig
from mbrl_lightning.config.sources import families, option_problems
from mbrl_lightning.config.words import read, yaml_values
from mbrl_lightning.errors import MBRLError, did_you_mean

if TYPE_CHECKING:  # PyTorch takes seconds to import; --help must not
    import torch

    from mbrl_lightning.envs.family import TaskFamily

HELP = """usage: python -m mbrl_lightning.check_env NAME [env.options.KEY=VALUE ...] [env.learned_reward=true]
       python -m mbrl_lightning.check_env env.file=PATH [env.options.KEY=VALUE ...] [env.learned_reward=true]

Checks a task family before anything is trained on it: shapes, fixed and unseen test tasks, repeatability
under a seed, finite episodes, state restoring, reward against the environment's own, the dynamics target and
its inverse, and that every parameter really changes the motion. PATH is a Python file with a function
family() -> TaskFamily.
One line per check. Exit status: 0 all passed, 2 usage, 3 a check failed."""

TASKS, STEPS, NOBODYS_SEED = 4, 30, 7_919_204_511
CLOSE, EXACT = 1e-3, 1e-12  # shares of the numbers compared
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
    learned = values.pop("env.learned_reward", False)
    options = {key.removeprefix(OPTIONS): value for key, value in values.items() if key.startswith(OPTIONS)}
    words.problems += [f"env.learned_reward={learned}: true or false is expected"] if type(learned) is not bool else []
    words.problems += [f"{key}: unknown key" for key in values if not key.startswith(OPTIONS)]
    words.problems += [f"{name}: unknown{did_you_mean(name, families())}" for name in names if name not in families()]
    words.problems += option_problems((names or [""])[0], file and str(file), options)
    if len(names) + (file is not None) != 1:
        words.problems.append(f"{len(names)} family names and env.file={file}: give one name or one file")
    words.raise_problems(f"give NAME, env.file=PATH or {OPTIONS}KEY=VALUE; families: {', '.join(families())}")
    from mbrl_lightning.envs import family_of

    return family_of(EnvConfig((names or [""])[0], options, file and str(file), bool(learned)))


def check_family(family: TaskFamily) -> Iterator[Check]:
    """Run all checks on ``family``; one that raises one of our errors counts as failed.

    What needs whole episodes is not tried where they do not come to their ends, and nothing after a call that hangs.
    """
    from mbrl_lightning.envs.guard import HangError

    said = ""
    for check in (_splits, _training, _shapes, _seeding, _masking, _state, _parameters):
        name = check.__name__.strip("_")
        try:
            yield Check(name, *check(family))
        except MBRLError as error:
            yield Check(name, False, "the same" if str(error) == said else str(error).replace("\n", " "))
            said = str(error)
            if isinstance(error, HangError):
                return
    try:
        start, steps = time.perf_counter(), family.spec.horizon
        data = _walk(family, _few(family), steps)
        speed = data["following"][..., 0].numel() / (time.perf_counter() - start)
        size = data["following"].abs().amax()
        yield Check("episode", True, f"{steps} random steps finite, |obs| <= {size:.3g}, {speed:.0f} steps/s")
        for judge in (_reward, _termination, _target, _mirror):
            yield Check(judge.__name__.strip("_"), *judge(family, data))
    except MBRLError as error:
        yield Check("episode", False, "the same" if str(error) == said else str(error).replace("\n", " "))


def _generator(seed: int = 0) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)


def _few(family: TaskFamily) -> Any:
    return family.simulate(family.test[:TASKS])


def _walk(family: TaskFamily, simulator: Any, steps: int = STEPS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random-policy steps from a reset; rows start anew on the step after their termination.

    Each [steps, tasks, ...]; with the environment's own ``reward`` and ``terminated`` where it has some.
    """
    import torch

    generator, rows = _generator(seed), []
    observation = following = simulator.reset(generator)
    for step in range(steps):
        ended = family.spec.termination(following)
        observation = simulator.reset(generator, ended) if step and ended.any() else following
        action = family.spec.random_action((simulator.batch_size,), generator)
        following = simulator.step(action)
        row = {"observation": observation, "action": action, "following": following}
        if hasattr(simulator, "last_reward"):
            row |= {"reward": simulator.last_reward.clone(), "terminated": simulator.last_terminated.clone()}
        rows.append(row)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _splits(family: TaskFamily) -> tuple[bool, str]:
    from mbrl_lightning.envs.family import same_tasks

    family.check_disjoint()
    width = len(family.parameters)
    parts = {"test": family.test, "extreme": family.extreme}
    bad = [n for n, t in parts.items() if t.ndim != 2 or (len(t) and t.shape[1] != width) or not t.isfinite().all()]
    if bad or not len(family.test):
        return False, f"{' and '.join(bad or ['no test'])} tasks: give finite ones, [number of tasks, {width}]"
    same = bool(same_tasks(family.test, family.sample(1000, _generator(NOBODYS_SEED))).any())
    sizes = f"{len(family.test)} test and {len(family.extreme)} extreme tasks of {width} parameters"
    detail = f"{sizes}; {'some are' if same else 'unlike all'} training tasks{', by design' * family.shared_tasks}"
    return same <= family.shared_tasks, detail


def _training(family: TaskFamily) -> tuple[bool, str]:
    first, second = family.sample(200, _generator()), family.sample(200, _generator())
    scaled = family.scale(first).abs().amax().item()
    good = first.equal(second) and first.shape == (200, len(family.parameters)) and scaled <= 1.5
    return good, f"repeatable draws; scaled parameters within +-{scaled:.2f} (should be about 1)"


def _shapes(family: TaskFamily) -> tuple[bool, str]:
    import torch

    spec, simulator = family.spec, _few(family)
    observation = simulator.reset(_generator())
    action = spec.random_action((simulator.batch_size,), _generator())
    following, expected = simulator.step(action), (simulator.batch_size, spec.observation_dim)
    deep = observation.expand(2, 3, *expected)
    batch = deep.shape[:-1]
    reward, ended = spec.reward(deep, action.expand(2, 3, *action.shape), deep), spec.termination(deep)
    good = observation.shape == following.shape == expected and observation.dtype == following.dtype == torch.float32
    good &= reward.shape == ended.shape == batch and ended.dtype == torch.bool
    good &= spec.features(deep).shape == (*batch, spec.feature_dim)
    good &= spec.target(deep, deep).shape == (*batch, spec.target_dim)
    detail = f"observation {spec.observation_dim}, features {spec.feature_dim}, target {spec.target_dim}"
    return good, f"{detail}, action {spec.action_dim}{' (one-hot)' if spec.discrete else ''}"


def _seeding(family: TaskFamily) -> tuple[bool, str]:
    simulator = _few(family)
    first, *again = (_walk(family, each)["following"] for each in (simulator, _few(family), simulator))
    if not first.equal(again[0]):
        return False, f"two runs of {STEPS} steps from one seed differ"
    # Hidden tasks are drawn anew with each episode.
    same = hasattr(simulator, "tasks") or first.equal(again[1])
    detail = (
        "agree bit for bit" if same else "differ in an environment used before: does set_task build on its own work?"
    )
    return same, f"runs of {STEPS} steps from one seed {detail}"


def _masking(family: TaskFamily) -> tuple[bool, str]:
    import torch

    simulator = _few(family)
    data = _walk(family, simulator)
    mask, last = torch.arange(simulator.batch_size) % 2 == 0, data["following"][-1]
    kept = simulator.step(data["action"][0], mask)[~mask].equal(last[~mask])
    kept &= simulator.reset(_generator(), mask)[~mask].equal(last[~mask])
    return kept, f"rows outside the mask {'keep their' if kept else 'get another'} observation"


def _state(family: TaskFamily) -> tuple[bool, str]:
    simulator = _few(family)
    action = _walk(family, simulator)["action"]
    saved = simulator.state()
    first = [simulator.step(a) for a in action]
    simulator.set_state(saved)
    good = all(simulator.step(a).equal(kept) for a, kept in zip(action, first, strict=True))
    other = "differ: something is kept elsewhere (gym_family's state_access); only perfect_model needs it"
    return good, f"{STEPS} steps after set_state(state()) {'agree bit for bit' if good else other}"


def _parameters(family: TaskFamily) -> tuple[bool, str]:
    drawn = family.sample(200, _generator())
    tasks = drawn[:1].repeat(len(family.parameters) + 1, 1)
    for j, column in enumerate(drawn.unbind(1)):
        tasks[j + 1, j] = column[(column - tasks[0, j]).abs().argmax()]
    # Simulators of one row each, so that all get the same initial state and actions.
    base, *others = [_walk(family, family.simulate(task[None]), seed=2)["following"] for task in tasks]
    size = base.abs().amax((0, 1)).clamp_min(1e-30)
    effects = dict(zip(family.parameters, [((run - base).abs() / size).max().item() for run in others], strict=True))
    near = [value for name, value in effects.items() if name not in family.distant]
    detail = ", ".join(f"{name} {value:.2g}" for name, value in effects.items())
    return min(near, default=1.0) > 1e-6, f"largest change of an observation in {STEPS} steps, of its size: {detail}"


def _reward(family: TaskFamily, data: dict[str, torch.Tensor]) -> tuple[bool, str]:
    reward = family.spec.reward(data["observation"], data["action"], data["following"])
    good, detail = bool(reward.isfinite().all()), f"within [{reward.min():.3g}, {reward.max():.3g}]"
    if "reward" not in data:
        return good, f"{detail}; the only definition there is"
    error, size = (reward - data["reward"]).abs().max(), data["reward"].abs().max()
    return good and bool(error <= CLOSE * size), f"{detail}; differs from the environment's own by {error:.2g} at most"


def _termination(family: TaskFamily, data: dict[str, torch.Tensor]) -> tuple[bool, str]:
    spec, following = family.spec, data["following"]
    ended, own = spec.termination(following), data.get("terminated")
    detail = f"{int(ended.sum())} of {ended.numel()} random steps end"
    if spec.training_termination is not None:
        detail += f", training is cut at {int(spec.training_termination(following).sum())}"
    return own is None or ended.equal(own), detail + (
        f", the environment's own: {int(own.sum())}" if own is not None else ""
    )


def _target(family: TaskFamily, data: dict[str, torch.Tensor]) -> tuple[bool, str]:
    observation, following = data["observation"].double(), data["following"].double()
    change = family.spec.target(observation, following)
    rebuilt = family.spec.untarget(observation, change)
    again = (family.spec.target(observation, rebuilt) - change).abs().amax((0, 1))
    again = again / (change.abs().amax((0, 1)) + EXACT * following.abs().max())
    # In features, since angles may come back a full turn away.
    features = family.spec.features
    moved = (features(following) - features(observation)).square().mean((0, 1))
    left = (features(rebuilt) - features(following)).square().mean((0, 1))
    size = (moved + EXACT * features(following).square().mean((0, 1))).clamp_min(1e-300)
    worst, share = again.max().item(), (left / size).sqrt().max().item()
    detail = f"target(untarget) exact to {worst:.1g}; untarget(target) leaves {share:.2%} of the step at most"
    return worst < 1e-4 and share < 0.5, detail


def _mirror(family: TaskFamily, data: dict[str, torch.Tensor]) -> tuple[bool, str]:
    spec, rows = family.spec, (data["observation"], data["action"], data["following"])
    if spec.mirror is None:
        return True, "no symmetry is declared"
    seen, turned = spec.mirror
    images = seen(rows[0]), turned(rows[1]), seen(rows[2])
    again = seen(images[0]), turned(images[1]), seen(images[2])
    twice = all(image.equal(row) for image, row in zip(again, rows, strict=True))
    reward = spec.reward(*rows)
    error, size = (spec.reward(*images) - reward).abs().max(), reward.abs().max()
    good = twice and bool(error <= CLOSE * size) and spec.termination(images[2]).equal(spec.termination(rows[2]))
    return (
        good,
        f"mirrored twice {'is' if twice else 'is NOT'} what it was; mirrored rewards differ by {error:.2g} at most",
    )


if __name__ == "__main__":
    sys.exit(main())
