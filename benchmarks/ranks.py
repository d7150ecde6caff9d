"""`python -m benchmarks.ranks`: what two processes of one thread save over one that does the same.

Seconds of the slower process, the median of rounds in which both sides take turns. CPU seconds can be compared on a busy
machine too; the time that passes only where two cores are free.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from lightning.fabric import Fabric

from benchmarks.__main__ import machine
from benchmarks.setting import prepare
from mbrl_lightning.config.console import quiet_libraries
from mbrl_lightning.data.collect import Uniform, collect_in
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.shared import shared
from mbrl_lightning.envs import make_family
from mbrl_lightning.networks.step import GradientStep

ROUNDS, UPDATES, STEPS = 3, 20, 50
Work = Callable[[GradientStep], object]
"""What is done on every rank."""


def fitting(tasks: int) -> Work:
    """Updates of half_cheetah's model, on batches of so many tasks."""
    setting = prepare("half_cheetah")
    algorithm = setting.algorithm
    algorithm.cfg.dynamics = replace(algorithm.cfg.dynamics, tasks=tasks)
    return lambda step: algorithm.fit(setting.real, step, UPDATES, setting.generator)


def collecting(name: str, rows: int) -> Work:
    """Random steps of so many bodies."""
    plain, draws = make_family(name), torch.Generator().manual_seed(0)
    tasks, uniform = plain.sample(rows, draws), Uniform(Control(plain.spec))

    def work(step: GradientStep) -> object:
        family = shared(plain, step)
        return collect_in(family, tasks, uniform, uniform.begin(rows), STEPS, draws, draws)

    return work


WORK = {
    f"{UPDATES} updates of a model, half_cheetah, 4 tasks (as shipped)": lambda: fitting(4),
    f"{UPDATES} updates of a model, half_cheetah, 16 tasks": lambda: fitting(16),
    f"{STEPS} steps of 60 cheetahs": lambda: collecting("half_cheetah", 60),
    f"{STEPS} steps of 40 humanoids": lambda: collecting("slim_humanoid", 40),
}


def seconds(work: Work, world: int) -> tuple[float, float]:
    """CPU seconds, and those that passed, of the slower of `world` processes that are forked for it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    reading, writing = os.pipe()
    for rank in range(world):
        if not os.fork():
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "GROUP_RANK": "0"}
            os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ["TORCHELASTIC_RUN_ID"] = "benchmark"
            fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp")
            fabric.launch()
            step = GradientStep(fabric)
            work(step)
            fabric.barrier()
            began = time.process_time(), time.perf_counter()
            work(step)
            ended = time.process_time(), time.perf_counter()
            os.write(writing, (json.dumps([ended[0] - began[0], ended[1] - began[1]]) + "\n").encode())
            os._exit(0)
    for _ in range(world):
        os.wait()
    lines = os.read(reading, 4096).decode().splitlines()
    os.close(reading)
    os.close(writing)
    cpu, passed = zip(*map(json.loads, lines), strict=True)
    return max(cpu), max(passed)


def main() -> None:
    """Measure, and print."""
    quiet_libraries()
    torch.set_num_threads(1)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for name, make in WORK.items():
        work = make()
        found = [(seconds(work, 1), seconds(work, 2)) for _ in range(ROUNDS)]
        for number, what in enumerate(("CPU", "passed")):
            one, two = (statistics.median(each[side][number] for each in found) for side in (0, 1))
            print(
                f"{name}: {what} one process {one:.2f} s, slower of two {two:.2f} s, ratio {one / two:.2f}", flush=True
            )


if __name__ == "__main__":
    main()
