"""What a run looks like: imagined against real, the latent space, curves, a short film. Drawn from a loop's present state."""

from __future__ import annotations

from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.console import log
from mbrl_lightning.imagination import ImaginedStreams
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.meta_test import MetaTest
from mbrl_lightning.reporting import figures, video

SHOWN_TASKS, SHOWN_STEPS, LATENT_TASKS = 3, 60, 60


def draw(loop: MetaLoop, folder: Path) -> list[Path]:
    """Draw every figure there is data for; a figure that fails costs a warning, never the run.

    Args:
        loop: after at least one iteration.
        folder: where the PNG files go.

    Returns:
        The files written.
    """
    rows = list(loop.results.rows)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        lambda: figures.learning_curve(rows, "return/policy", folder / "learning_curve.png"),
        lambda: figures.adaptation_curve(rows, folder / "adaptation_curve.png"),
    ]
    if loop.algorithm.dynamics is not None:
        jobs += [
            lambda: _imagined_against_real(loop, folder / "imagined_against_real.png"),
            lambda: _latent_space(loop, folder / "latent_space.png"),
        ]
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


def _meta_test(loop: MetaLoop) -> MetaTest:
    return MetaTest(
        loop.algorithm, loop.real, loop.step, torch.Generator().manual_seed(loop.cfg.seed + 1), lambda *_, **__: None
    )


@torch.no_grad()
def imagined_and_real(loop: MetaLoop, tasks: Tensor) -> tuple[TensorDict, TensorDict]:
    """The deployed policy in unseen tasks and in their imagined counterparts, from the same initial states.

    Args:
        loop: with a model.
        tasks: `[M, P]`.

    Returns:
        Imagined and real episodes `[M, T]`; the imagined ones stand still after termination.
    """
    test, algorithm = _meta_test(loop), loop.algorithm
    assert algorithm.dynamics is not None
    size = loop.family.context_steps
    belief = test.adapt(test.context(tasks, size), size)
    real = test.episodes(tasks, test.deterministic(belief))[:, 0]
    members = algorithm.dynamics.decoder.copies
    device = loop.fabric.device
    start = real["observation"][:, 0].unsqueeze(1).repeat(1, members, 1).to(device)
    rows = belief[torch.arange(len(tasks)).repeat_interleave(members)].to(device)
    streams = ImaginedStreams(algorithm.dynamics, belief.to(device), start, real.shape[1] + 1)

    def act(observation: Tensor) -> dict[str, Tensor]:
        return {"action": algorithm.policy.act(observation.flatten(0, 1), rows).unflatten(0, observation.shape[:2])}

    return _standing_still(streams.rollout(act, real.shape[1])[:, 0].cpu()), real


def _standing_still(imagined: TensorDict) -> TensorDict:
    # imagined streams begin anew after an end; a real evaluation episode stays where it ended
    done = imagined["next", "done"].squeeze(-1)
    last = torch.where(done.any(1), done.int().argmax(1), done.shape[1] - 1)
    final = imagined["next", "observation"][torch.arange(len(done)), last].unsqueeze(1)
    past = (torch.arange(done.shape[1]) > last.unsqueeze(1)).unsqueeze(-1)
    for key in ("observation", ("next", "observation")):
        imagined[key] = torch.where(past, final, imagined[key])
    return imagined


def _imagined_against_real(loop: MetaLoop, path: Path) -> Path:
    imagined, real = imagined_and_real(loop, loop.family.test[:SHOWN_TASKS])
    names = loop.family.spec.observation_names
    return figures.imagined_against_real(
        imagined["observation"][:, :SHOWN_STEPS].numpy(), real["observation"][:, :SHOWN_STEPS].numpy(), names, path
    )


def _latent_space(loop: MetaLoop, path: Path) -> Path:
    test, size = _meta_test(loop), loop.family.context_steps
    tasks = loop.family.sample(LATENT_TASKS, test.generator)
    belief = test.adapt(test.context(tasks, size), size)
    return figures.latent_space(belief["loc"].numpy(), tasks.numpy(), loop.family.parameters, path)


def film(loop: MetaLoop, path: Path, steps: int = 200) -> Path | None:
    """Film the deployed policy in the first unseen task (headless); a warning and None where nothing can render.

    Args:
        loop: after training.
        path: target `.mp4`.
        steps: frames.
    """
    test, family = _meta_test(loop), loop.family
    tasks, size = family.test[:1], family.context_steps
    belief = test.adapt(test.context(tasks, size), size)
    simulator = family.simulate(tasks)
    frames = []
    try:
        observation = simulator.reset(test.generator)
        act = test.deterministic(belief)(1)
        for _ in range(min(steps, family.spec.horizon)):
            frames.append(simulator.render(0))
            observation = simulator.step(act(observation))
    except Exception as error:  # no display driver is no reason to lose a run
        log.warning("no video: %s", error)
        return None
    finally:
        simulator.close()
    return video.write_video(frames, path, fps=25)
