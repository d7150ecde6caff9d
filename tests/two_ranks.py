"""Trains with two processes and writes what each of them holds; run by `test_distributed.py`, not by pytest itself.

`python two_ranks.py FOLDER NAME...` imports everything once and forks the ranks of each group of scenarios, `a,b,c:2` for two
of them, which run one after another in the same processes: imports and first calls take longer than the training. Each rank
writes FOLDER/NAME/rank<r>.pt; exit statuses and seconds of a group go to FOLDER/outcome.json under its first name.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from fakes import fingerprint, read_by, shortened

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies.mujoco import MujocoSimulator
from mbrl_lightning.errors import EnvError, MBRLError
from mbrl_lightning.loop import MetaLoop

LIMIT = 60.0
STEPPED: set[int] = set()  # rows that a simulator of bodies was asked to step at a time
advance = MujocoSimulator._advance


def counted(self: MujocoSimulator, rows: list[int], control: np.ndarray) -> None:
    STEPPED.add(len(rows))
    advance(self, rows, control)


MujocoSimulator._advance = counted
BASE = {
    "conf": "debug",
    "seed": 3,
    "loop": {"iterations": 2, "model_steps": 6, "first_model_steps": 6},
    "search": {"restarts": 2, "tasks": 4, "updates": 3},
    "dynamics": {"tasks": 4},
}
PPO = {"search": BASE["search"] | {"method": "ppo", "epochs": 3, "minibatch": 8, "target_kl": 1e-4}}
MILD = {"subsample": 1, "damping": 0.1}
BODIES = {  # stepped one by one, so ranks share them out
    "env": {"name": "half_cheetah_fwd_bwd", "options": {"horizon": 8}},
    "loop": {"iterations": 1},
}
HIDDEN = {
    "conf": "point_switch",
    "loop": {"iterations": 2, "episode_steps": 30, "model_steps": 6, "first_model_steps": 6},
    "dynamics": {"tasks": 4, "hidden": 8, "layers": 1, "targets": 16},
    "policy": {"hidden": [8]},
    "sac": {"warmup_steps": 60, "every": 10, "updates_per_step": 0.2, "batch": 16},
    "branch": {"per_step": 4},
    "evaluation": {"shots": [0.0]},
}


def build(folder: Path, changes: dict, world: int, falls: bool = False) -> MetaLoop:
    """A tiny run; with `falls`, imagined episodes end at other times on one rank than on the other."""
    devices = {"devices": world, "strategy": "ddp"} if world > 1 else {}
    cfg = compose(read_by(BASE | changes | devices))
    family = shortened(make_family(cfg.env.name), test=2)
    if falls:
        spec = replace(family.spec, training_termination=lambda after: after[..., 0].abs() > 0.08)
        family = replace(family, spec=spec)
    return MetaLoop(cfg, family, make_algorithm(cfg, family), folder / "run", quiet=True)


def trains(name: str, **changes) -> Callable[[int, Path, int], None]:
    def scenario(rank: int, folder: Path, world: int) -> None:
        STEPPED.clear()
        loop = build(folder, changes, world, falls=name == "gssm_aps-ppo")
        if name not in TESTED:  # what it draws is its own: nothing that is learned depends on it
            loop.evaluate = lambda full: {}
        loop.fit()
        held = {"algorithm": loop.algorithm.state_dict(), "print": fingerprint(loop.state_dict())}
        held |= {"rows": len(loop.results.rows), "global": loop.fabric.global_rank}
        held |= {"real": loop.real.transitions()["next", "observation"], "stepped": sorted(STEPPED)}
        torch.save(held, folder / f"rank{rank}.pt")

    return scenario


def signalled(rank: int, folder: Path, world: int) -> None:
    loop = build(folder, {"loop": BASE["loop"] | {"iterations": 4}}, world)
    loop.stop = SimpleNamespace(requested=int(signal.SIGTERM) if rank == 1 else None)  # up on one rank alone
    loop.fit()


def fails(rank: int, folder: Path, world: int) -> None:
    loop = build(folder, TRAINED["dr_ppo"], world)
    if rank == 1:
        MujocoSimulator._advance = lambda self, rows, control: fault()
    loop.fit()


def fault() -> None:
    raise EnvError("an arm came off", "screw it on")


def faulty(fault: Callable[[dict], dict]) -> Callable[[int, Path, int], None]:
    """What the second rank's fourth step of the model gives goes through `fault`."""

    def scenario(rank: int, folder: Path, world: int) -> None:
        loop = build(folder, {}, world)
        real = loop.algorithm.dynamics.training_step

        def step(batch):
            out = real(batch)
            return fault(out) if rank == 1 and loop.step.count == 3 else out

        loop.algorithm.dynamics.training_step = step
        loop.fit()

    return scenario


TESTED = ("gssm_aps", "gssm_aps-ppo")
TRAINED: dict[str, dict] = {
    "gssm_aps": {},
    "gssm_aps-ppo": PPO,
    "dr_ppo": BODIES | {"algorithm": "dr_ppo", "search": {"updates": 1, "tasks": 16, "horizon": 12}},
    "m3po": HIDDEN | {"algorithm": "m3po"},
    "pearl": HIDDEN | {"algorithm": "pearl", "pearl": {"meta_batch": 4, "context": 8}},
    "ddpg": {"algorithm": "ddpg", "sac": {"warmup_steps": 20, "every": 5, "updates_per_step": 0.2, "batch": 16}},
    "mb_mpo": {
        "algorithm": "mb_mpo",
        "dynamics": {"members": 3, "targets": 8, "persistence": 0.5},
        "meta": MILD | {"updates": 3, "rollouts": 4},
    },
    "grbal": {
        "algorithm": "grbal",
        "dynamics": {"hidden": 8, "tasks": 4},
        "l2a": {"past": 4, "future": 4, "segments": 8},
        "planner": {"candidates": 12, "horizon": 4, "elites": 4},
    },
    "trpo": {"algorithm": "trpo", "search": BASE["search"] | {"horizon": 12}, "meta": MILD},
    "acktr": {"algorithm": "acktr", "search": {"updates": 2, "tasks": 4, "horizon": 12, "epochs": 2}},
    "maml": {  # of few rows a baseline leaves nothing but rounding
        "algorithm": "maml",
        "search": BASE["search"] | {"horizon": 12, "updates": 1},
        "meta": MILD | {"rollouts": 12},
    },
    "rl2": {"algorithm": "rl2", "search": {"updates": 1, "tasks": 4}},
    "pe_ppo": {"algorithm": "pe_ppo", "search": {"updates": 1}},
}
SCENARIOS: dict[str, Callable[[int, Path, int], None]] = {
    **{name: trains(name, **changes) for name, changes in TRAINED.items()},
    "signalled": signalled,
    "fails": fails,
    "dies": faulty(lambda out: os._exit(9)),
    "diverges": faulty(lambda out: out | {"loss": out["loss"] * float("nan")}),
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(names: list[str], rank: int, folder: Path, world: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if world > 1:  # as torchrun would say it
            os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
            os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world))
            os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ["TORCHELASTIC_RUN_ID"] = "test"
        for name in names:
            own = folder / (name if world > 1 else f"{name}_1")
            own.mkdir(parents=True, exist_ok=True)
            SCENARIOS[name](rank, own, world)
        status = 0
    except MBRLError as error:
        print(error, file=sys.stderr)
        status = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run(names: list[str], folder: Path, world: int) -> dict:
    port, began = free_port(), time.monotonic()
    children = [start(names, rank, folder, world, port) for rank in range(world)]
    statuses: dict[int, int | None] = {}
    while len(statuses) < world and time.monotonic() - began < LIMIT * len(names):
        for rank, child in enumerate(children):
            if rank not in statuses:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    for rank, child in enumerate(children):
        if rank not in statuses:  # hangs
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            statuses[rank] = None
    return {"statuses": [statuses[rank] for rank in range(world)], "seconds": time.monotonic() - began}


if __name__ == "__main__":
    target, outcome = Path(sys.argv[1]), {}
    for wanted in sys.argv[2:]:
        together, _, count = wanted.partition(":")
        group = together.split(",")
        outcome[f"{group[0]}:{count}"] = run(group, target, int(count))
    (target / "outcome.json").write_text(json.dumps(outcome))
