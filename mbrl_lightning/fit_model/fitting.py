"""Fitting a method's model to recorded episodes, and what it makes of those that were held out."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config import to_yaml
from mbrl_lightning.config.console import log
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import consecutive, transition
from mbrl_lightning.data.recordings import Episode, Recordings, read
from mbrl_lightning.data.seeds import Streams
from mbrl_lightning.envs import family_of
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.fit_model import recorded
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.report.canvas import COLOURS, blank, save
from mbrl_lightning.report.tables import Table
from mbrl_lightning.runs import checkpoint
from mbrl_lightning.runs.storage import probe, replace_file

MOST_EPISODES, MOST_STEPS, BINS = 20, 200, 10


def divided(found: Recordings, share: float, generator: torch.Generator) -> tuple[list[Episode], list[Episode], str]:
    """Episodes to fit to, those held out, and what these are in words: tasks if there are several, else episodes."""
    kinds = [(episode.source if np.isnan(episode.task).any() else "", str(episode.task)) for episode in found.episodes]
    several = len(set(kinds)) > 1
    groups: list[Any] = sorted(set(kinds)) if several else list(range(len(kinds)))
    order = torch.randperm(len(groups), generator=generator)[: max(round(share * len(groups)), 1)].tolist()
    chosen = {groups[place] for place in order}
    out = [(kind if several else place) in chosen for place, kind in enumerate(kinds)]
    parts = [[e for e, held in zip(found.episodes, out, strict=True) if held == want] for want in (False, True)]
    if not parts[0]:
        raise ConfigError(
            f"held_out={share:g} leaves nothing to fit to", "choose a smaller share, or give more datasets"
        )
    what = f"{len(chosen)} of {len(groups)} {'tasks' if several else 'episodes'}"
    return parts[0], parts[1], what


@torch.no_grad()
def predicted(algorithm: Algorithm, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor]:
    """What happened on held-out steps, its prediction, and its spread over members: changes `[N, S]` each.

    A method that learns from contexts is given the first half of an episode; all follow the rest as they would in acting.
    """
    lengths = [len(episode.data[0]) for episode in episodes]
    kept = [e for e in episodes if len(e.data[0]) >= np.median(lengths)][:MOST_EPISODES]
    length = min(MOST_STEPS, *(len(e.data[0]) for e in kept))
    data = torch.cat([episode.data[:, :length] for episode in kept])
    spec, model, belief = algorithm.spec, algorithm.model, algorithm.begin(len(data))
    assert model is not None
    first = min(algorithm.shots(False)[0], length // 2)
    names: Any = ("observation", "action", ("next", "observation"))
    if first:
        belief = algorithm.adapt(belief, consecutive(spec, *(data[name][:, :first] for name in names)))
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for time in range(first, length):
        observation, action, following = (data[name][:, time] for name in names)
        belief = algorithm.act(belief, observation)[1]
        members = model.predictions(observation.unsqueeze(1), action.unsqueeze(1), belief)[:, :, 0]
        change = spec.change(observation.expand_as(members), members)
        rows.append((spec.change(observation, following), change.mean(0), change.std(0, correction=0)))
        belief = algorithm.adapt(belief, transition(observation, action, following))
    truth, mean, spread = (torch.cat(column) for column in zip(*rows, strict=True))
    return truth, mean, spread


def table_of(spec: EnvSpec, truth: Tensor, mean: Tensor, spread: Tensor, title: str) -> Table:
    """A line for each output: root mean squares, in its own units."""
    header = ["output", "change", "error", "error / no change", "spread", "spread / error", "within 2 spreads"]
    table = Table(title, header)
    error = mean - truth
    sizes = (value.square().mean(0).sqrt() for value in (truth, error, spread))
    inside = (error.abs() <= 2 * spread).float().mean(0)
    for name, change, off, wide, share in zip(spec.observation_names, *sizes, inside, strict=True):
        ratio, calibrated = off / change.clamp_min(1e-12), wide / off.clamp_min(1e-12)
        cells = [f"{float(value):.3g}" for value in (change, off, ratio, wide, calibrated, share)]
        table.rows.append([name, *cells])
    table.notes = [
        "root mean squares of one step, in the output's own units; spread: deviation of the members' predictions"
    ]
    return table


def draw(spec: EnvSpec, truth: Tensor, mean: Tensor, spread: Tensor, picture: Path) -> None:
    """Error against spread, in `BINS` equal parts of the steps by their spread, over the deviation of the change."""
    figure, (axes,) = blank(1, 1, 5.2, 4.4)
    unit = truth.std(0).clamp_min(1e-12)
    for column, name in enumerate(spec.observation_names[: len(COLOURS)]):
        order = spread[:, column].argsort()
        both = torch.stack([spread[:, column], (mean - truth)[:, column]]) / unit[column]
        parts = [both[:, rows].square().mean(1).sqrt() for rows in order.tensor_split(BINS)]
        wide, off = torch.stack(parts, 1)
        axes.plot(wide, off, "o-", color=COLOURS[column], markersize=4, linewidth=1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="spread of the members / deviation of the change")
    axes.set_ylabel("error / deviation of the change")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter("")  # where a decade or less is shown, labels of its parts lie on each other
    axes.axline((0.1, 0.1), (0.2, 0.2), color="grey", linestyle="--", linewidth=1, label="as large as the error")
    axes.legend(fontsize=8)
    save(figure, picture)


def fit(names: Sequence[str], cfg: Config, out: Path, steps: int, held_out: float) -> dict[str, Any]:
    """See `fit_model.fit_model`; the `table`, its `text`, and `truth`, `mean`, `spread` `[N, S]` of the held-out steps."""
    known = None if Path(cfg.env.file or "") == Path(recorded.__file__) else family_of(cfg.env)
    found = read(names, *((known.spec, known.parameters) if known else ()))
    probe(out)
    family, streams = known or recorded.family_of_data(found), Streams(cfg.seed)
    fitted, held, what = divided(found, held_out, streams["tasks"])
    described = to_yaml(cfg).encode()
    cfg.planner.horizon = cfg.planner.iterations = 1  # nothing is to be planned
    streams.seed_globals()
    algorithm = make_algorithm(cfg, family)
    if algorithm.model is None:
        cause = f"algorithm={cfg.algorithm} fits no model"
        raise ConfigError(cause, "choose dynamics=graph, ensemble or recurrent, or another algorithm")
    real = TaskBuffer(len(found.parameters), max(sum(len(e.data[0]) for e in fitted), 1))
    found.fill(real, fitted)
    print(f"{cfg.algorithm}'s model is fitted to {len(real)} transitions: {steps} gradient steps at most", flush=True)
    losses = algorithm.fit(real, GradientStep(Fabric(accelerator="cpu", devices=1)), steps, streams["batches"])
    state = {"algorithm": algorithm.state_dict(), "family": family.described()}
    checkpoint.save(
        out / "checkpoints", checkpoint.newest(out / "checkpoints") + 1, state, keep=1
    )  # an older model goes
    replace_file(out / "config.yaml", described)
    columns = predicted(algorithm.eval(), held)
    title = f"{', '.join(names)}: model of {cfg.algorithm}, {len(real)} transitions, tested on {what}"
    table = table_of(family.spec, *columns, title)
    replace_file(out / "table.md", table.markdown().encode())
    if importlib.util.find_spec("matplotlib") is not None:
        draw(family.spec, *columns, out / "calibration.png")
    else:
        log.warning("calibration.png is not drawn: pip install 'mbrl_lightning[viz]'")
    truth, mean, spread = columns
    return {"table": table, "text": table.text(), "losses": losses, "truth": truth, "mean": mean, "spread": spread}
