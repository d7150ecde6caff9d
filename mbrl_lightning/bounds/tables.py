"""M3PO's performance guarantees as tables and figures: Fig. 4, and the errors along a run (Fig. 11 and 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mbrl_lightning.bounds.guarantees import (
    Form,
    branched_rollout_discrepancy,
    full_rollout_discrepancy,
    pinsker,
    vacuous_above,
)
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.report import canvas
from mbrl_lightning.report.statistics import Array
from mbrl_lightning.report.tables import Table, number
from mbrl_lightning.runs.results import PathLike, read_results

NLL, KL = "model/nll", "policy/kl_cloned"
GAMMAS = (0.85, 0.9, 0.95)  # of Fig. 4
LENGTHS = np.arange(1, 51)
ERRORS = np.linspace(0.0, 1.0, 101)
Run = tuple[str, str, int]
"""Env, algorithm, seed."""
LIMITS = """These are proxies that compare evaluations of one run; they guarantee nothing about its return:
- eps_m = sqrt(NLL / 2) is Pinsker's inequality with the NLL in place of a KL, from which it differs by the entropy of the
  true next step: unknown, and the NLL depends on units and may be below 0. In a deterministic simulator the total
  variation between the next step and any Gaussian is 1: formally eps_m = 1, however small the NLL.
- eps_pi = sqrt(KL / 2) takes the mean over the data where the theorems take the greatest over histories, and the cloned
  policy is a fit to the data, not what collected them."""


def bounds_table(gamma: float, eps_m: float, eps_pi: float, k: Sequence[int], r_max: float = 1.0) -> Table:
    """Both discrepancies for each k, and the best k; arguments and errors as in `guarantees`."""
    full, limit = float(full_rollout_discrepancy(gamma, eps_m, eps_pi, r_max)), float(vacuous_above(gamma, r_max))
    printed = branched_rollout_discrepancy(gamma, eps_m, eps_pi, k, r_max, "printed")
    exact = branched_rollout_discrepancy(gamma, eps_m, eps_pi, k, r_max)
    table = Table(
        f"true return >= model return - C, for gamma={gamma:g}, eps_m={eps_m:g}, eps_pi={eps_pi:g}, r_max={r_max:g}",
        ["k", "C_Th1", "C_Th2 as printed", "C_Th2 exact", "C_Th2 exact - C_Th1", "vacuous"],
    )
    for length, loose, tight in zip(k, printed.tolist(), exact.tolist(), strict=True):
        said = _vacuous({"C_Th1": full, "C_Th2 as printed": loose, "C_Th2 exact": tight}, limit)
        table.rows.append([str(length), *(f"{value:.10g}" for value in (full, loose, tight, tight - full)), said])
    best = f"best k of these: {k[int(exact.argmin())]}, with C_Th2 exact = {exact.min():.10g}"
    table.notes = [_limit_note(limit), best]
    return table


def read_errors(run: PathLike) -> dict[Run, Array]:
    """For each run the `[4, n]` of its n evaluations: iteration, real steps, NLL of held-out data, KL of cloned policy, nats."""
    values: dict[Run, dict[tuple[int, int], dict[str, list[float]]]] = {}
    for row in read_results(run):
        if row.metric in (NLL, KL):
            places = values.setdefault((row.env, row.algorithm, row.seed), {})
            places.setdefault((row.iteration, row.real_steps), {}).setdefault(row.metric, []).append(row.value)
    found: dict[Run, Array] = {}
    for name, places in sorted(values.items()):
        both = [(*place, np.mean(at[NLL]), np.mean(at[KL])) for place, at in sorted(places.items()) if len(at) == 2]
        if both:
            found[name] = np.array(both, dtype=np.float64).T
    if not found:
        cause = f"{run}: its results hold no evaluation with both {NLL} and {KL}"
        raise ConfigError(cause, "name a run of algorithm=m3po that has been evaluated at least once")
    return found


def run_bounds(
    errors: Array,
    gamma: float,
    k: Sequence[int] = (1,),
    r_max: float = 1.0,
    eps_m: float | None = None,
    eps_pi: float | None = None,
) -> dict[str, Array]:
    """`[n]` each of `eps_m`, `eps_pi`, `C_Th1`, and `C_Th2, k=...` (exact) for each k, from the `[4, n]` of `read_errors`.

    A given eps_m or eps_pi takes the place of the estimates `sqrt(NLL / 2)` and `sqrt(KL / 2)`.
    """
    nothing = np.zeros(errors.shape[1])
    model = pinsker(errors[2]) if eps_m is None else nothing + eps_m
    policy = pinsker(errors[3]) if eps_pi is None else nothing + eps_pi
    bounds = {"eps_m": model, "eps_pi": policy, "C_Th1": full_rollout_discrepancy(gamma, model, policy, r_max)}
    return bounds | {f"C_Th2, k={n}": branched_rollout_discrepancy(gamma, model, policy, n, r_max) for n in k}


def run_table(name: Run, errors: Array, bounds: Mapping[str, Array], limit: float) -> Table:
    """One line for each evaluation of a run: `read_errors`, `run_bounds`, and which bounds are above `vacuous_above`."""
    opening = ["iteration", "real steps", "NLL [nats]", "KL from cloned policy [nats]"]
    table = Table("{}, {}, seed {}: error proxies and bounds".format(*name), [*opening, *bounds, "vacuous"])
    for index, (iteration, steps, nll, kl) in enumerate(errors.T.tolist()):
        values = {key: float(column[index]) for key, column in bounds.items()}
        cells = [number(value, 4) for value in (nll, kl, *values.values())]
        said = _vacuous({key: value for key, value in values.items() if key.startswith("C_")}, limit)
        table.rows.append([f"{iteration:.0f}", f"{steps:,.0f}", *cells, said])
    table.notes = [_limit_note(limit)]
    return table


def comparison(path: PathLike, gammas: Sequence[float] = GAMMAS, r_max: float = 1.0, form: Form = "printed") -> Path:
    """Fig. 4: `C_Th2 - C_Th1` over model error and branch length; where it is below 0, branching is guaranteed more.

    Upper row (a) eps_pi = 0, lower row (b) eps_pi = 1 - eps_m; one column for each discount. On the black line both
    are equal. Hatched: C_Th2 is vacuous, above `2 r_max / (1 - gamma)`; C_Th1 is right of the dashed line.
    """
    figure, panels = canvas.blank(2, len(gammas), 3.6, 3.3)
    eps_m, k = np.meshgrid(ERRORS, LENGTHS)  # [k, eps_m]
    for index, axes in enumerate(panels):
        row, gamma = index // len(gammas), gammas[index % len(gammas)]
        eps_pi = (1 - eps_m) * row
        branched = branched_rollout_discrepancy(gamma, eps_m, eps_pi, k, r_max, form)
        full, limit = full_rollout_discrepancy(gamma, eps_m, eps_pi, r_max), vacuous_above(gamma, r_max)
        gap = branched - full
        most = float(np.abs(gap).max()) or 1.0  # with gamma = 0 all of (a) is 0
        filled = axes.contourf(ERRORS, LENGTHS, gap, np.linspace(-most, most, 25), cmap="RdBu_r")
        figure.colorbar(filled, ax=axes, format="%.3g")
        if gap.min() < 0 < gap.max():
            axes.contour(ERRORS, LENGTHS, gap, [0.0], colors="black", linewidths=1.5)
        if (branched > limit).any():
            hatched = axes.contourf(ERRORS, LENGTHS, branched / limit, [1.0, np.inf], colors="none", hatches=["//"])
            hatched.set_edgecolor("0.55")
            hatched.set_linewidth(0.0)
        if full.min() < limit < full.max():
            axes.contour(ERRORS, LENGTHS, full / limit, [1.0], colors="0.3", linestyles="--", linewidths=1.2)
        shares = (float((branched > limit).mean()), float((full > limit).mean()))
        axes.set_title(f"({'ab'[row]}) {('eps_pi = 0', 'eps_pi = 1 - eps_m')[row]}, gamma = {gamma:g}", fontsize=9)
        words = "vacuous in {:.0%} (C_Th2), {:.0%} (C_Th1) of the panel".format(*shares)
        axes.set_xlabel(f"model error eps_m\n{words}", fontsize=8)
        axes.set_ylabel("branch length k", fontsize=8)
        axes.grid(visible=False)
    note = "blue: branching is guaranteed more; black line: equal; hatched: C_Th2 vacuous; right of dashes: C_Th1"
    return canvas.save(figure, path, f"C_Th2 ({form}) - C_Th1 for r_max = {r_max:g}; {note}")


def along_runs(runs: Mapping[Run, tuple[Array, Mapping[str, Array]]], limit: float, path: PathLike) -> Path:
    """Model error, policy divergence and the bounds from them against real steps, one colour for each run."""
    figure, (likelihood, divergence, discrepancy) = canvas.blank(1, 3, 4.6, 3.8)
    for index, (name, (errors, bounds)) in enumerate(runs.items()):
        steps, shade = errors[1], canvas.colour(index)
        likelihood.plot(steps, errors[2], "o-", color=shade, markersize=3, label="{}, {}, seed {}".format(*name))
        divergence.plot(steps, errors[3], "o-", color=shade, markersize=3)
        for style, key in enumerate(key for key in bounds if key.startswith("C_")):
            label = key if index == 0 else None
            discrepancy.plot(steps, bounds[key], ("--", "-", ":", "-.")[style % 4], color=shade, label=label)
    discrepancy.axhline(limit, color="0.5", linewidth=1.1, label="vacuous above")
    discrepancy.set_yscale("log")
    labels = ("NLL of held-out data [nats]", "KL from the cloned policy [nats]", "bound from these proxies")
    for axes, label in zip((likelihood, divergence, discrepancy), labels, strict=True):
        axes.set(xlabel="real environment steps", ylabel=label)
    likelihood.legend(fontsize=8)
    discrepancy.legend(fontsize=8)
    return canvas.save(figure, path, "proxies, not total variation distances; they guarantee nothing about the return")


def _vacuous(bounds: Mapping[str, float], limit: float) -> str:
    names = [name for name, value in bounds.items() if value > limit]
    return "all" if len(names) == len(bounds) else "; ".join(names) or "none"


def _limit_note(limit: float) -> str:
    return f"vacuous: above 2 r_max / (1 - gamma) = {limit:.10g}, by which any two returns can differ"
