"""The numbers as plain text and as docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Memory, Ratio, Share

INTRODUCTION = """# Benchmarks

`python -m benchmarks` measures everything on this page in one run on one CPU thread and writes the
page; the numbers are also in `benchmarks/results.json`. Compare ratios, not milliseconds. The sides
of a ratio take turns, and the ratio is the median over the rounds, with the smallest and the
largest round in brackets. Times are CPU times of the process.
"""
GROUPS = {
    "GSSM": """## GSSM: matrix products against explicit messages

The context encoder as the library writes it (`beliefs/encoders.py`: every sum over nodes is a
matrix product) against `benchmarks/graph_rival.py`, which lays all messages out as `[M, N, N, Z]`
and sums them. Same weights, same results (checked to 1e-4 before timing), M = 4 tasks, N context
and N target transitions, Z = 16, the half-cheetah network of the paper's parameter table. The
target stands at the encoder, where the two sides differ; in the whole model both also pay for the
same decoder.
""",
    "model fitting": """## Model fitting against a bare PyTorch loop

What `MetaLoop` does in its model stage (draw contexts and targets, share among ranks,
`training_step`, finite guard, clip, Adam) against `benchmarks/fitting.py`: the same network, batch
sizes and optimiser on two tensors that were standardised once beforehand. Both sides draw their
batches.
""",
    "imagined steps": """## Imagined steps against the networks alone

`ImaginedStreams` with everything it keeps (rewards, terminations, restarts, finite guard, log-
probabilities for PPO) against a loop that calls the same networks and keeps observations and
actions.
""",
    "SAC": """## One SAC update

`SAC.update` (losses, guard, Adam, targets, numbers out) against the same computation on plain tensors
in `benchmarks/actor_critic.py`, and against TorchRL's `SACLoss` with `SoftUpdate` on the same networks:
windows of L = 10 pairs read by a recurrent unit of 5 in each network, 18 observation and 6 action
entries. Both sides of the first ratio end in the same parameters (checked to 1e-4 before timing).

Where the time of `SACLoss` goes, at [64, 64], 13.4 ms an update against 5.7 ms here in one run: its
three calls of the two Q networks take 2.0 ms each, of which the networks, called one after the other, are
1.1 ms, and as one product of two copies 0.7 ms; the rest is their parameters put into a module and
taken out again, and TensorDicts taken apart and stacked. One of those calls reads windows again that the
Q networks have just read for another action; the layers alone are 0.2 ms. Its two calls of
the actor take 1.1 ms each, the network 0.6 ms of it; here one pass serves observations and next
observations. Density and sample of a `TanhNormal` are 0.2 ms each, the target update 0.2 ms against 0.03 ms.
The backward pass through all this takes 3.7 ms against 2.4 ms.
""",
    "compiled losses": """## Compiled losses

What `compile=true` gives on a CPU: whole updates (batch, losses, guard, optimizer, targets) with losses that `torch.compile` made
against the same with losses as they are, in turn. Compiling itself, 20 to 50 s once, is left out.
Contexts of a model are of any length, so its sizes are left open.
""",
    "histories": """## Branches and windows of histories

`imagination.branched_rollouts` with everything it keeps (a head and noise for every row, rewards, terminations, the
windows that SAC learns from) against one forward pass of policy and model on the same histories. And the
drawing of a batch of windows in one gather (`data/windows.py`; wanted under 0.3 ms) against walking back from every row.
""",
    "meta step": """## One meta step of MB-MPO

Two phases of 5 models x 20 x 200 imagined steps with their advantages, the inner step, and MAML-TRPO's gradient, ten conjugate
gradient iterations and line search, against the same equations written out on plain tensors. Under .35 s was wanted.
""",
    "planning": """## Planning for many environments in one call

`policies/planners.py` (CEM, one iteration): 16 half-cheetahs x 500 candidates x 20 steps x 5 models of two hidden
layers, against the same planner and against TorchRL's `CEMPlanner`, both called for one environment after the other. A
factor of 5 was wanted. A CPU core does not give it: one environment alone is 2,500 rows a step, whose products keep
the core as busy as 40,000 rows do, so that only what is spent per call can be saved. Where there is less to compute, as
with 50 candidates and one model, calls are what costs.
""",
    "control step": """## One control step of GrBAL

Adapting to the last 16 transitions and planning in the adapted model (MPPI), against planning in the model as it is.
A control step of one half-cheetah was wanted under 50 ms.
""",
    "closed-loop collection": """## Closed-loop collection

Sixteen half-cheetah tasks, one policy call for all of them at each step. `data.collect` against
gymnasium's `SyncVectorEnv` with the masses and dampings set in each environment, and against bare
`mj_step` on the same models with positions and velocities read and nothing kept.
""",
}
MEMORY = """### Peak memory

The most bytes that one call holds at once, and its largest tensor, by the allocator's own account.
With matrix products the largest tensor is `[M, N, N]`; an N x N x Z tensor never exists.
"""
SHARES = """## Where the time of a run goes

Two short iterations of the shipped configurations with their networks, batches, checkpoints and
meta-test. "Outside" is the wall-clock in none of the four stages: the loop itself, checkpoints and
rows.
"""


def put_into(page: str, marks: tuple[str, str], lines: Iterable[str]) -> None:
    """Print lines as they come, and put them between two marks of a page of the project."""
    path, found = Path(__file__).parents[1] / page, list[str]()
    for line in lines:
        print(line, flush=True)
        found.append(line + "\n")
    before, rest = path.read_text().split(marks[0])
    path.write_text(before + marks[0] + "".join(found) + marks[1] + rest.split(marks[1])[1])


def wanted(entry: Ratio) -> str:
    """The target and whether it is met, as words."""
    if entry.met is None:
        return ""
    bound = f">= {entry.floor:g}" if entry.floor is not None else f"<= {entry.ceiling:g}"
    return f"{bound}: {'met' if entry.met else 'missed'}"


def spread(entry: Ratio) -> str:
    """Ratio with its range over the rounds."""
    return f"{entry.ratio:.2f} ({entry.low:.2f} to {entry.high:.2f})"


def text(ratios: Sequence[Ratio], memories: Sequence[Memory], shares: Sequence[Share]) -> str:
    """Lines for the terminal."""
    lines = [
        f"{entry.group}: {entry.case}: {entry.slow} / {entry.fast} = {spread(entry)} "
        f"[{entry.slow_ms:.3g} ms / {entry.fast_ms:.3g} ms] {wanted(entry)}"
        for entry in ratios
    ]
    lines += [
        f"memory: {entry.case}: {entry.side}: peak {entry.peak / 1e6:.1f} MB, largest tensor "
        f"{entry.largest / 1e6:.1f} MB"
        for entry in memories
    ]
    for share in shares:
        stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in share.seconds.items())
        lines.append(
            f"{share.case}: {stages}; outside {share.outside:.1%} (<= {share.ceiling:.0%}: "
            f"{'met' if share.met else 'missed'})"
        )
    return "\n".join(lines)


def markdown(
    ratios: Sequence[Ratio], memories: Sequence[Memory], shares: Sequence[Share], machine: Mapping[str, str]
) -> str:
    """The page."""
    hardware = (
        f"{machine['cpu']}, {machine['system']}, {machine['threads']} thread, load {machine['load']} at the start"
    )
    libraries = [
        f"{name} {value}" for name, value in machine.items() if name not in ("cpu", "threads", "system", "load")
    ]
    parts = [INTRODUCTION, f"Measured on: {hardware}; {', '.join(libraries)}.\n"]
    for group, introduction in GROUPS.items():
        rows = [_row(entry) for entry in ratios if entry.group == group]
        parts += [
            introduction,
            "\n".join(["| case | ms | ms | ratio | target |", "|---|---|---|---|---|", *rows, ""]),
        ]
        if group == "GSSM":
            parts += [MEMORY, _memory_table(memories)]
    return "\n".join([*parts, SHARES, _share_table(shares)])


def _row(entry: Ratio) -> str:
    sides = f"{entry.slow} {entry.slow_ms:.3g} | {entry.fast} {entry.fast_ms:.3g}"
    return f"| {entry.case} | {sides} | {spread(entry)} | {wanted(entry)} |"


def _memory_table(memories: Sequence[Memory]) -> str:
    sides = list(dict.fromkeys(entry.side for entry in memories))
    cells = {(entry.case, entry.side): f"{entry.peak / 1e6:.1f} MB, {entry.largest / 1e6:.1f} MB" for entry in memories}
    rows = [
        f"| {case} | " + " | ".join(cells[case, side] for side in sides) + " |"
        for case in dict.fromkeys(entry.case for entry in memories)
    ]
    head = "| case | " + " | ".join(f"{side}: peak, largest tensor" for side in sides) + " |"
    return "\n".join([head, "|---" * (len(sides) + 1) + "|", *rows, ""])


def _share_table(shares: Sequence[Share]) -> str:
    stages = list(shares[0].seconds) if shares else []
    head = "| run | " + " | ".join(f"{stage} [s]" for stage in stages) + " | outside | target |"
    rows = [
        f"| {share.case} | "
        + " | ".join(f"{share.seconds[stage]:.1f}" for stage in stages)
        + f" | {share.outside:.1%} | <= {share.ceiling:.0%}: {'met' if share.met else 'missed'} |"
        for share in shares
    ]
    return "\n".join([head, "|---" * (len(stages) + 3) + "|", *rows, ""])
