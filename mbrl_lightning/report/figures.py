"""Figures of a run. Each function draws one PNG at `path`, making its folder, and returns its path.

Matplotlib is imported on first use and drawn on directly (no pyplot, no global state, no display). Nothing here reads or
changes a random stream of the training. Rows are of one env, values tensors or arrays; a ValueError says what is not so.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mbrl_lightning.report import canvas
from mbrl_lightning.report.curves import Curve, by_algorithm, choose, curve, last, one_env, seed_count
from mbrl_lightning.report.metrics import metric as named
from mbrl_lightning.report.paper import full_unit
from mbrl_lightning.report.statistics import Array, score_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from mbrl_lightning.runs.results import PathLike, Row

PANELS = 12  # most observation entries in one figure
ROLLOUTS = 3  # most rollouts in one panel
POINTS = 1000  # most latents embedded: t-SNE's time grows faster than their number
LEAST = 1e-8  # drawn in place of no error at all, which has no logarithm


def learning_curve(
    rows: Sequence[Row],
    metric: str,
    path: PathLike,
    reference: Mapping[str, float] | None = None,
    split: str | None = None,
    shot: int | None = None,
    title: str = "",
) -> Path:
    """A metric against real environment steps, one colour for each algorithm.

    Thick line: mean over seeds and tasks. Dashed line and band: interquartile mean with its 95 % stratified
    bootstrap interval (two seeds or more). Thin lines: each seed's mean over tasks. `reference`: label to value, each a
    horizontal line; `title`: a line above the usual one; `split` and `shot` as in `curves.choose`.
    """
    chosen = choose(rows, metric, split, shot)
    figure, (axes,) = canvas.blank(1, 1, 7.5, 5.0)
    groups = by_algorithm(chosen)
    lines = {algorithm: curve(mine, "real_steps") for algorithm, mine in groups.items()}
    first, places = chosen[0], sorted({row.real_steps for row in chosen})
    once = all(len(row_places) == 1 for line in lines.values() for row_places, _ in line.seeds)
    abreast = once and len(lines) > 1  # on top of each other none would be seen
    for index, (algorithm, line) in enumerate(lines.items()):
        place = np.array([float(index)])
        moved = replace(line, seeds=[(place, values) for _, values in line.seeds], grid=place)
        _draw(axes, moved if abreast else line, index, algorithm)
    _references(axes, reference)
    where = f"{first.split} tasks" if first.split else "training"
    shots = " or ".join(str(shot) for shot in sorted({row.shot for row in chosen}) if shot >= 0)
    context = f", context of {shots} transitions" if shots else ""
    title = "\n".join([*textwrap.wrap(title, 60), f"{first.env}: {where}{context}"])
    after = f"after {' or '.join(f'{place:,}' for place in places)} " if abreast else ""
    axes.set(title=title, xlabel=f"{after}real environment steps", ylabel=_label(first))
    if metric.startswith("model/") and min(row.value for row in chosen) > 0:
        axes.set_yscale("log")
    if abreast:
        axes.set_xticks(range(len(lines)), list(lines), rotation=20)
        axes.set_xlim(-0.5, len(lines) - 0.5)
    else:
        axes.legend(fontsize=9)
    return canvas.save(figure, path, _note(groups, points=once))


def adaptation_curve(rows: Sequence[Row], path: PathLike, reference: Mapping[str, float] | None = None) -> Path:
    """Return on unseen tasks (extreme ones if all rows are) against the transitions adapted on, at each seed's last iteration.

    Lines, band and reference as in `learning_curve`; crosses: with another task's belief; dotted: random actions.
    """
    splits = {row.split for row in rows if row.metric == "return/policy"}
    split = splits.pop() if len(splits) == 1 else "test"
    test = [row for row in rows if row.split == split]
    chosen = last([row for row in test if row.metric == "return/policy"])
    one_env(chosen, f"return/policy on {split} tasks")
    figure, (axes,) = canvas.blank(1, 1, 7.5, 5.0)
    groups = by_algorithm(chosen)
    for index, (algorithm, mine) in enumerate(groups.items()):
        _draw(axes, curve(mine, "shot"), index, algorithm)
        wrong = last([row for row in test if row.metric == "return/wrong_belief" and row.algorithm == algorithm])
        shots = sorted({row.shot for row in wrong})
        means = [score_matrix([row for row in wrong if row.shot == shot])[2].mean() for shot in shots]
        if shots:
            label = f"{algorithm}, another task's belief"
            axes.plot(shots, means, "x", color=canvas.colour(index), markersize=9, markeredgewidth=2, label=label)
    random = [row.value for row in test if row.metric == "return/random"]
    _references(axes, {"random policy": float(np.mean(random))} if random else None, style=":")
    _references(axes, reference)
    context = "context (real transitions of the unseen task)"
    axes.set(title=f"{chosen[0].env}: adaptation on {split} tasks", xlabel=context, ylabel=_label(chosen[0]))
    axes.legend(fontsize=9)
    return canvas.save(figure, path, _note(groups))


def exploitation(rows: Sequence[Row], path: PathLike) -> Path:
    """Imagined return beside the real one, a panel for each algorithm that has both.

    The shaded gap is what the model promises and reality does not keep: model exploitation.
    """
    both = ("imagined/return", "real/return")
    groups = by_algorithm([row for row in rows if row.metric in both])
    groups = {name: mine for name, mine in groups.items() if {row.metric for row in mine} == set(both)}
    one_env([row for mine in groups.values() for row in mine], "imagined/return and real/return")
    figure, panels = canvas.blank(1, len(groups), 6.5, 4.8, share_y=True)
    for axes, (algorithm, mine) in zip(panels, groups.items(), strict=True):
        imagined, real = (curve([row for row in mine if row.metric == metric], "real_steps") for metric in both)
        for index, line in enumerate((real, imagined)):
            _lines(axes, line, index, named(both[1 - index]).heading)
        steps, values = real.mean()
        axes.fill_between(steps, np.interp(steps, *imagined.mean()), values, color="0.5", alpha=0.15, label="gap")
        ends = [np.concatenate([each for _, each in line.seeds]) for line in (real, imagined)]
        canvas.frame(axes, ends[0], ends[1], slack=5.0)
        axes.set(title=f"{mine[0].env}, {algorithm}", xlabel="real environment steps")
    panels[0].set_ylabel(f"return\n({full_unit(next(iter(groups.values()))[0].unit, mine[0].env)})")
    panels[0].legend(fontsize=9)
    return canvas.save(figure, path, f"thick: mean over seeds; thin: each seed ({seed_count(groups)})")


def imagined_against_real(imagined: Any, real: Any, names: Sequence[str], path: PathLike) -> Path:
    """The model's rollouts `[B, H, S]` beside real ones from the same starts under the same actions, NaN when they were over.

    Up to three rollouts are drawn. With more than twelve observation entries the worst predicted twelve are
    shown (error over the real entry's spread). An imagined line that leaves the frame is far from the data.
    """
    dreamt, truth = canvas.array(imagined), canvas.array(real)
    if dreamt.ndim != 3 or dreamt.shape != truth.shape or dreamt.shape[2] != len(names):
        raise ValueError(f"want two [B, H, S] with {len(names)} names, got {dreamt.shape} and {truth.shape}")
    entries = _worst(dreamt, truth) if len(names) > PANELS else np.arange(len(names))
    columns = min(4, len(entries))
    figure, panels = canvas.blank(-(-len(entries) // columns), columns, 3.4, 2.7)
    for axes, entry in zip(panels, entries, strict=False):
        for rollout in range(min(ROLLOUTS, len(truth))):
            axes.plot(truth[rollout, :, entry], color=canvas.colour(rollout), linewidth=1.8)
            axes.plot(dreamt[rollout, :, entry], "--", color=canvas.colour(rollout), linewidth=1.4)
        canvas.frame(axes, truth[:ROLLOUTS, :, entry], dreamt[:ROLLOUTS, :, entry], slack=0.75)
        axes.set_title(names[entry], fontsize=10)
        axes.set_xlabel("step of the rollout", fontsize=8)
    for axes in panels[len(entries) :]:
        axes.set_visible(False)
    shown = "" if len(entries) == len(names) else f", the {len(entries)} worst predicted of {len(names)} entries"
    figure.suptitle(f"Real (solid) and imagined (dashed) rollouts{shown}")
    return canvas.save(figure, path, "one colour for each rollout; vertical axes in the units of the observation")


def before_and_after(panels: Mapping[str, Array], names: Sequence[str], path: PathLike, note: str = "") -> Path:
    """What each of S outputs of a model is off by, from before it adapts (hollow) to after (filled), on logarithmic axes.

    `panels`: title to errors `[2, S]`, first before, then after; outputs that are NaN or infinite are left out.
    """
    figure, all_axes = canvas.blank(1, len(panels), 4.2, 1.2 + 0.2 * len(names), share_y=True)
    places = np.arange(len(names))
    for axes, (title, errors) in zip(all_axes, panels.items(), strict=True):
        before, after = np.maximum(errors, LEAST)
        better = after <= before
        finite = np.isfinite(before) & np.isfinite(after)
        for index, word, chosen in ((0, "less after", better & finite), (1, "more after", ~better & finite)):
            shade = canvas.colour(index)
            axes.hlines(places[chosen], before[chosen], after[chosen], color=shade, label=word)
            axes.plot(before[chosen], places[chosen], "o", color=shade, markerfacecolor="white", markersize=4)
            axes.plot(after[chosen], places[chosen], "o", color=shade, markersize=4)
        axes.axvline(1.0, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_yticks(places, names, fontsize=7)
    all_axes[0].invert_yaxis()
    all_axes[0].legend(fontsize=7)
    return canvas.save(figure, path, note)


def latent_space(latents: Any, colour: Any, names: Sequence[str], path: PathLike) -> Path:
    """Latents `[N, Z]` in two dimensions, a panel for each of the P true task parameters `[N, P]` that colour them.

    t-SNE (scikit-learn) where it is installed and there are at least five different points, else the first
    two principal components. Latents that are not finite are left out and counted in the title.
    """
    points, values = canvas.array(latents), canvas.array(colour)
    if points.ndim != 2 or values.shape != (len(points), len(names)):
        raise ValueError(f"want [N, Z] and [N, {len(names)}], got {points.shape} and {values.shape}")
    finite = np.isfinite(points).all(1)
    if not finite.any():
        raise ValueError("no latent is finite")
    picks = np.flatnonzero(finite)
    picks = picks[np.unique(np.linspace(0, len(picks) - 1, POINTS).astype(int))]
    method, flat = embed(points[picks])
    figure, panels = canvas.blank(1, max(len(names), 1), 4.6, 4.2)
    for index, axes in enumerate(panels[: len(names)]):
        drawn = axes.scatter(flat[:, 0], flat[:, 1], s=28, c=values[picks, index], edgecolors="0.3", linewidths=0.3)
        figure.colorbar(drawn, ax=axes, label=f"true {names[index]}")
        axes.set(xlabel=f"{method} 1", ylabel=f"{method} 2")
    lost = f", {int((~finite).sum())} not finite left out" if not finite.all() else ""
    figure.suptitle(f"Latent of {len(picks)} tasks ({points.shape[1]} dimensions, {method}{lost})")
    return canvas.save(figure, path)


def embed(points: Array) -> tuple[str, Array]:
    """Two dimensions for finite `[N, Z]`: the method's name and `[N, 2]`, the same for the same points."""
    if len(np.unique(points, axis=0)) >= 5 and points.shape[1] > 1:
        with contextlib.suppress(ImportError):
            from sklearn.manifold import TSNE

            perplexity = min(30.0, (len(points) - 1) / 3)
            method = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=0)
            return "t-SNE", np.asarray(method.fit_transform(points / points.std()), dtype=np.float64)
    left, singular, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    flat = np.zeros((len(points), 2))
    count = min(2, len(singular))
    flat[:, :count] = left[:, :count] * singular[:count]
    return "PCA", flat


def _lines(axes: Axes, line: Curve, index: int, label: str) -> None:
    """Thick: the mean; thin: each seed."""
    shade, few = canvas.colour(index), "o" if len(line.grid) <= 15 else ""
    for place, values in line.seeds if len(line.seeds) > 1 else ():
        axes.plot(place, values, marker=few, color=shade, linewidth=0.7, alpha=0.45, markersize=2)
    axes.plot(*line.mean(), marker=few, color=shade, linewidth=2.2, markersize=5, label=label)


def _draw(axes: Axes, line: Curve, index: int, label: str) -> None:
    _lines(axes, line, index, label)
    if len(line.seeds) > 1:
        shade, (middle, low, high) = canvas.colour(index), line.band()
        axes.plot(line.grid, middle, "--", color=shade, linewidth=1.2)
        if len(line.grid) == 1:  # a band of no width would not be seen
            ends = [middle - low, high - middle]
            axes.errorbar(line.grid, middle, ends, color=shade, capsize=5, fmt="_", markersize=10)
        axes.fill_between(line.grid, low, high, color=shade, alpha=0.18, linewidth=0)


def _note(groups: Mapping[str, Sequence[Row]], points: bool = False) -> str:
    if all(len({row.seed for row in mine}) == 1 for mine in groups.values()):
        return "mean over tasks; one seed"
    mean, middle, each = ("large dot", "bar", "small") if points else ("thick", "dashed, band", "thin")
    spread = f"{middle}: IQM, 95 % stratified bootstrap"
    return f"{mean}: mean over seeds and tasks; {spread}; {each}: each seed ({seed_count(groups)})"


def _references(axes: Axes, reference: Mapping[str, float] | None, style: str = "-.") -> None:
    for index, (label, value) in enumerate((reference or {}).items()):
        axes.axhline(value, color=str(0.25 + 0.2 * (index % 3)), linestyle=style, linewidth=1.1, label=label)


def _worst(imagined: Array, real: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        spread = np.maximum(np.nanstd(real, axis=(0, 1)), 1e-6)
        error = np.nanmean(np.abs(imagined - real), axis=(0, 1)) / spread
    worst = np.argsort(-np.nan_to_num(error, nan=np.inf, posinf=np.inf), kind="stable")[:PANELS]
    return np.sort(worst)


def _label(row: Row) -> str:
    returns = "return" in row.metric
    unit = full_unit(row.unit, row.env) if returns else row.unit
    heading = f"return, {named(row.metric).heading}" if row.metric.startswith("return/") else named(row.metric).heading
    return heading + (f"\n({unit})" if unit else "")
