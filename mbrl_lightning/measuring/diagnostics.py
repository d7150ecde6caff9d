"""What a run looks like: imagined against real, the latent space, curves, a short film. Drawn from a loop's present state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.config.console import log
from mbrl_lightning.measuring.hidden_task import after_switches
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.models.adaptive import AdaptiveDynamics
from mbrl_lightning.models.imagination import ImaginedStreams
from mbrl_lightning.models.measures import output_errors, until_fall
from mbrl_lightning.models.recurrent import HistoryDynamics
from mbrl_lightning.policies.adaptive_actor import AdaptiveActor
from mbrl_lightning.policies.history_actor import HistoryActor
from mbrl_lightning.report import figures, video
from mbrl_lightning.report.outputs import before_and_after
from mbrl_lightning.report.switches import switches

SHOWN_TASKS, SHOWN_STEPS, SHOWN_AFTER, LATENT_TASKS = 3, 60, 100, 60


def draw(loop: Any, folder: Path) -> list[Path]:
    """Draw every figure there is data for; a figure that fails costs a warning, never the run.

    Args:
        loop: after at least one iteration.
        folder: where the PNG files go.

    Returns:
        The files written.
    """
    rows, algorithm = list(loop.results.rows), loop.algorithm
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [lambda: figures.learning_curve(rows, "return/policy", folder / "learning_curve.png")]
    if algorithm.adapts:
        jobs.append(lambda: figures.adaptation_curve(rows, folder / "adaptation_curve.png"))
    if algorithm.model is not None:
        jobs.append(lambda: _imagined_against_real(loop, folder / "imagined_against_real.png"))
    if algorithm.model is not None and algorithm.adapts and not algorithm.deploys_prior:
        jobs.append(lambda: _latent_space(loop, folder / "latent_space.png"))
    if isinstance(algorithm.model, AdaptiveDynamics) and not algorithm.model.idle:
        jobs.append(lambda: _outputs(loop, folder / "outputs.png"))
    if loop.family.switch_every:
        jobs.append(lambda: _switches(loop, folder / "switches.png"))
    if any(row.metric == "imagined/return" for row in rows):
        jobs.append(lambda: figures.exploitation(rows, folder / "exploitation.png"))
    written: list[Path] = []
    for job in jobs:
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                written.append(Path(job()))
        except Exception as error:  # a picture is never worth a run
            log.warning("figure not drawn: %s", error)
    return written


def _meta_test(loop: Any) -> MetaTest:
    return MetaTest(
        loop.algorithm, loop.real, loop.step, torch.Generator().manual_seed(loop.cfg.seed + 1), lambda *_, **__: None
    )


def _belief(test: MetaTest, tasks: Tensor) -> TensorDict:
    """What the method believes of `tasks` `[M, P]` after the family's context, if it takes any."""
    algorithm = test.algorithm
    size = algorithm.family.context_steps if algorithm.adapts else 0
    return test.adapt(test.context(tasks, max(size, 1)), size)


@torch.no_grad()
def imagined_and_real(loop: Any, tasks: Tensor) -> tuple[TensorDict, TensorDict]:
    """The deployed policy in unseen tasks and in their imagined counterparts, from the same initial states.

    Args:
        loop: with a model.
        tasks: `[M, P]`.

    Returns:
        Imagined and real episodes `[M, T]`; the imagined ones stand still after termination.
    """
    test, algorithm = _meta_test(loop), loop.algorithm
    assert algorithm.model is not None
    belief = _belief(test, tasks)
    real = test.episodes(tasks, test.deterministic(belief))[:, 0]
    if isinstance(algorithm.model, HistoryDynamics | AdaptiveDynamics):
        actor, model = algorithm.actor(belief), algorithm.model
        assert isinstance(actor, HistoryActor | AdaptiveActor)
        steps = real.shape[1] if isinstance(actor, HistoryActor) else min(real.shape[1], SHOWN_STEPS)
        imagined = _imagined_alone(model, actor, real["observation"][:, 0], steps)
        return _standing_still(imagined), real[:, :steps]
    members = algorithm.model.decoder.copies
    device = loop.fabric.device
    start = real["observation"][:, 0].unsqueeze(1).repeat(1, members, 1).to(device)
    rows = belief[torch.arange(len(tasks)).repeat_interleave(members)].to(device)
    streams = ImaginedStreams(algorithm.model, belief.to(device), start, real.shape[1] + 1)

    def act(observation: Tensor) -> dict[str, Tensor]:
        return {"action": algorithm.policy.act(observation.flatten(0, 1), rows).unflatten(0, observation.shape[:2])}

    return _standing_still(streams.rollout(act, real.shape[1])[:, 0].cpu()), real


def _imagined_alone(
    dynamics: HistoryDynamics | AdaptiveDynamics, actor: HistoryActor | AdaptiveActor, start: Tensor, steps: int
) -> TensorDict:
    """Episodes `[M, T]` from initial states `[M, S]` in the mean of the model's heads; the actor keeps their histories."""
    rows, observation = [], start
    actor.begin(torch.ones(len(start), dtype=torch.bool))
    for _ in range(steps):
        action, before = actor(observation), observation.to(dynamics.device)
        if isinstance(dynamics, HistoryDynamics):
            inputs = actor.belief.clone(False).set("current", dynamics.inputs.current(before))
            following = dynamics.predict(before, inputs, action.to(dynamics.device)).mean(0)
        else:
            asked = before.unsqueeze(1), action.to(dynamics.device).unsqueeze(1)
            following = dynamics.predict(*asked, actor.belief).squeeze(1)
        following = torch.clamp(following, dynamics.low, dynamics.high).cpu()
        done = dynamics.spec.termination(following).unsqueeze(-1)
        rows.append({"observation": observation, "action": action, "next": {"observation": following, "done": done}})
        observation = following
    return torch.stack([TensorDict(row, batch_size=[len(start)]) for row in rows], 1)


def _standing_still(imagined: TensorDict) -> TensorDict:
    # imagined streams begin anew after an end; a real evaluation episode stays where it ended
    done = imagined["next", "done"].squeeze(-1)
    last = torch.where(done.any(1), done.int().argmax(1), done.shape[1] - 1)
    final = imagined["next", "observation"][torch.arange(len(done)), last].unsqueeze(1)
    past = (torch.arange(done.shape[1]) > last.unsqueeze(1)).unsqueeze(-1)
    for key in ("observation", ("next", "observation")):
        imagined[key] = torch.where(past, final, imagined[key])
    return imagined


def _imagined_against_real(loop: Any, path: Path) -> Path:
    imagined, real = imagined_and_real(loop, loop.family.test[:SHOWN_TASKS])
    names = loop.family.spec.observation_names
    return figures.imagined_against_real(
        imagined["observation"][:, :SHOWN_STEPS].numpy(), real["observation"][:, :SHOWN_STEPS].numpy(), names, path
    )


def _outputs(loop: Any, path: Path) -> Path:
    """Error of each output before and after adapting, on episodes of unseen tasks."""
    test, dynamics, spec, l2a = _meta_test(loop), loop.algorithm.model, loop.family.spec, loop.cfg.l2a
    assert isinstance(dynamics, AdaptiveDynamics)
    tasks = loop.family.test[:SHOWN_TASKS]
    episodes = until_fall(test.episodes(tasks, test.deterministic(_belief(test, tasks))), spec)
    errors = output_errors(dynamics, episodes.to(dynamics.device), l2a.past, l2a.future)[0].cpu().nanmean(1)
    data = loop.real.transitions()
    trained = spec.change(data["observation"], data["next", "observation"]).var(0)
    now = spec.change(episodes["observation"], episodes["next", "observation"])[episodes["valid"]].var(0)
    panels = {
        "share of its variance in training": errors / trained,
        "share of its variance in these episodes": errors / now,
    }
    note = f"squared error of the next {l2a.future} changes: hollow, as the model is; filled, adapted to the last {l2a.past}"
    return before_and_after(
        {title: share.numpy() for title, share in panels.items()}, spec.observation_names, path, note
    )


def _latent_space(loop: Any, path: Path) -> Path:
    test = _meta_test(loop)
    tasks = loop.family.sample(LATENT_TASKS, test.generator)
    belief = _belief(test, tasks)
    return figures.latent_space(belief["loc"].numpy(), tasks.numpy(), loop.family.parameters, path)


def _switches(loop: Any, path: Path) -> Path:
    test, tasks = _meta_test(loop), loop.family.test
    episodes = test.episodes(tasks, test.deterministic(_belief(test, tasks)))[:, 0]
    after, switched = after_switches(episodes, SHOWN_AFTER)
    first = episodes[0][episodes["valid"][0]]
    reward, hidden = first["next", "reward"].squeeze(-1), first["hidden"][:, 0]
    return switches(after, switched[:, 0], reward, hidden, loop.family.parameters[0], path)


def film(loop: Any, path: Path, steps: int | None = None) -> Path | None:
    """Film the deployed policy in the first unseen task (headless); a warning and None where nothing can render.

    Args:
        loop: after training.
        path: target `.mp4`.
        steps: frames; None: 200, or enough for two switches of a hidden task.
    """
    test, family = _meta_test(loop), loop.family
    steps = steps or max(200, 5 * (family.switch_every or 0) // 2)
    tasks = family.test[:1]
    belief = _belief(test, tasks)
    simulator = family.simulate(tasks)
    frames = []
    try:
        observation = simulator.reset(test.generator)
        act = test.deterministic(belief)(1)
        begin = getattr(act, "begin", None)
        if begin is not None:
            begin(torch.ones(1, dtype=torch.bool))
        for _ in range(min(steps, family.spec.horizon)):
            frames.append(simulator.render(0))
            observation = simulator.step(act(observation))
    except Exception as error:  # no display driver is no reason to lose a run
        log.warning("no video: %s", error)
        return None
    finally:
        simulator.close()
    return video.write_video(frames, path, fps=25)
