"""The one loop: collect real data, fit the dynamics, improve the policy, evaluate, checkpoint. Fabric owns the devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.console import log
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.seeds import Streams, globals_kept
from mbrl_lightning.data.shared import shared
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import Interrupted, Preempted
from mbrl_lightning.measuring.baselines import baselines_of
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.networks.step import GradientStep, require_finite
from mbrl_lightning.runs import checkpoint
from mbrl_lightning.runs.devices import make_fabric
from mbrl_lightning.runs.progress import Progress
from mbrl_lightning.runs.results import Results, return_unit
from mbrl_lightning.runs.signals import StopFlag


class MetaLoop:
    """Meta-training (GSSM Algorithm 1) and meta-testing of one algorithm on one task family with one seed.

    Args:
        cfg, family, algorithm: what is run, on which tasks.
        folder: where checkpoints and results go; None keeps everything in memory.
        stop: asked at iteration boundaries.
        quiet: no progress lines.
        watch: called on rank 0 every `loop.figures_every` iterations and at the end, to draw.
        fabric: not launched yet; None makes one as configured.

    Raises:
        ConfigError: train and test tasks overlap.
    """

    def __init__(
        self,
        cfg: Config,
        family: TaskFamily,
        algorithm: Algorithm,
        folder: Path | None = None,
        stop: StopFlag | None = None,
        quiet: bool = False,
        watch: Callable[[MetaLoop], None] = lambda loop: None,
        fabric: Fabric | None = None,
    ) -> None:
        if not cfg.allow_overlap:
            family.check_disjoint()
        self.cfg, self.family, self.algorithm, self.folder, self.stop = cfg, family, algorithm, folder, stop
        self.watch = watch
        torch.set_num_threads(cfg.threads)
        self.fabric = fabric or make_fabric(cfg)
        self.fabric.launch()
        algorithm.to(self.fabric.device)
        on_gpu = self.fabric.device.type == "cuda"
        self.step = GradientStep(self.fabric, {"auto": on_gpu}.get(cfg.compile, cfg.compile == "true"))
        self.streams = Streams(cfg.seed)
        self.world = RealWorld(shared(family, self.step), self.streams, cfg.loop.buffer)
        self.real = self.world.real
        path = folder / "results.csv" if folder is not None and self.fabric.is_global_zero else None
        self.results = Results(path, cfg.algorithm, cfg.conf or family.spec.name, cfg.seed)
        self.progress = Progress(cfg, self.fabric.is_global_zero and not quiet, folder)
        self.times: dict[str, float] = {}

    @property
    def iteration(self) -> int:
        """Outer iterations done."""
        return self.world.iteration

    def fit(self) -> Results:
        """Run all iterations and the final meta-test; the rows. The last checkpoint is intact whatever happens.

        Raises:
            Interrupted, Preempted: a signal came; the state was saved.
            DivergedError: a loss, gradient or imagined state is not finite.
        """
        status = "failed"
        try:
            with self.progress.watching(
                lambda: f"{self.step.count:,} gradient steps, {self.real.num_steps:,} real steps"
            ):
                self._iterate()
            status = "success"
        finally:
            self.progress.loggers.close(status)
        return self.results

    def _iterate(self) -> None:
        loop = self.cfg.loop
        began = time.perf_counter()
        while self.iteration < loop.iterations:
            with self._timed("collect"):
                metrics = self.algorithm.collect(self.world)
            with self._timed("model"):
                metrics |= self._fit_dynamics()
            with self._timed("policy"):
                metrics |= self.algorithm.improve(self.world, self.step)
            self.algorithm.iteration += 1
            self.world.iteration += 1
            require_finite(self._learned(), f"iteration {self.iteration}")
            last = self.iteration == loop.iterations
            every = loop.evaluate_every
            if self._due(max(loop.iterations // 6, 1) if every is None else every):
                with self._timed("evaluate"):
                    metrics |= self.evaluate(full=last)
            self.times["total"] = self.times.get("total", 0.0) + time.perf_counter() - began
            began = time.perf_counter()
            self._record(metrics)
            self.progress.line(self.iteration, self.real.num_steps, metrics, self.times)
            if self._due(loop.checkpoint_every):
                self.save()
            if self._due(loop.figures_every):
                self._show()
            self._heed_signals()

    def _due(self, every: int) -> bool:
        """Whether it is time for what is done every so many iterations, 0 is never, and after the last."""
        return self.iteration == self.cfg.loop.iterations or (every > 0 and self.iteration % every == 0)

    def _fit_dynamics(self) -> dict[str, float]:
        loop = self.cfg.loop
        steps = loop.first_model_steps if self.iteration == 0 else loop.model_steps
        steps += loop.last_model_steps * (self.iteration == loop.iterations - 1)
        return self.algorithm.fit(self.real, self.step, steps, self.streams["batches"])

    def evaluate(self, full: bool, split: str | None = None, baselines: bool = False) -> dict[str, float]:
        """Meta-test; draws from the evaluation stream alone, so it cannot change what is learned."""
        summary: dict[str, float] = {}
        test = MetaTest(self.algorithm, self.real, GradientStep(self.fabric), self.streams["evaluation"], self._add)
        with globals_kept():
            if baselines:
                test.baselines = baselines_of(self.family, self.cfg, self.real, self.step, test.generator)
            split = split or self.cfg.evaluation.split
            tasks = {"test": self.family.test, "extreme": self.family.extreme}.get(split)
            if tasks is None:
                tasks = self.family.sample(16, torch.Generator().manual_seed(10_000 + self.cfg.seed))
            if len(tasks):
                summary = test.run(tasks, split, full)
            if full and split == "test" and len(self.family.extreme):
                test.run(self.family.extreme, "extreme", full=False)
        self.results.flush()
        return summary

    def _add(self, metric: str, value: float, **where: Any) -> None:
        spec = self.family.spec
        at: dict[str, Any] = {"iteration": self.iteration, "real_steps": self.real.num_steps}
        unit = return_unit(spec.unit, spec.horizon) if "return" in metric else ""
        self.results.add(metric, value, **at, **where, unit=unit)

    def _record(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if name.split("/")[0] in ("imagined", "real", "train"):
                self._add(name, value)
        for stage, seconds in self.times.items():
            self._add(f"time/{stage}", seconds)
        self.results.flush()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began, self.progress.stage = time.perf_counter(), stage
        yield
        self.times[stage] = self.times.get(stage, 0.0) + time.perf_counter() - began

    def _show(self) -> None:
        try:
            if self.fabric.is_global_zero:
                with globals_kept():  # of whatever the environments drew in a film
                    self.watch(self)
        except Exception as error:  # a picture is never worth a run
            log.warning("figures failed: %s", error)
        self.fabric.barrier()

    def _heed_signals(self) -> None:
        heard = self.stop.requested or 0 if self.stop is not None else 0
        if self.fabric.world_size > 1:  # a signal may have reached some of the processes only
            numbers = self.fabric.all_gather(torch.tensor(heard, device=self.fabric.device))
            heard = int(torch.as_tensor(numbers).max())
        if not heard or self.iteration >= self.cfg.loop.iterations:
            return
        self.save()
        kind = Interrupted if heard == 2 else Preempted
        cause = f"stopped by signal {heard} after iteration {self.iteration}, state saved"
        raise kind(cause, f"continue with resume={self.folder}")

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on exactly: plain containers and tensors."""
        return {
            **self._learned(),
            "family": self.family.described(),
            "world": self.world.state_dict(),
            "streams": self.streams.state_dict(),
            "generator": self.algorithm.generator.get_state(),
            "times": dict(self.times),
            "gradient_steps": self.step.count,
        }

    def _learned(self) -> dict[str, Any]:
        optimizers = {name: value.state_dict() for name, value in self.algorithm.optimizers.items()}
        return {"algorithm": self.algorithm.state_dict(), "optimizers": optimizers}

    def load_state_dict(self, state: dict[str, Any], weights_only: bool = False) -> None:
        """Restore what `state_dict` gave; with `weights_only` just networks and normalisers, for a new run."""
        self.algorithm.load_state_dict(state["algorithm"])
        if weights_only:
            return
        for name, value in state["optimizers"].items():
            self.algorithm.optimizers[name].load_state_dict(value)
        self.world.load_state_dict(state["world"])
        self.algorithm.generator.set_state(state["generator"].cpu())
        self.times, self.step.count = dict(state["times"]), state["gradient_steps"]
        self.results.truncate(self.iteration)
        self.streams.load_state_dict(state["streams"])

    def save(self) -> None:
        """Write a checkpoint (rank 0), if there is a folder."""
        if self.folder is not None and self.fabric.is_global_zero:
            self.results.record()
            checkpoint.save(self.folder / "checkpoints", self.iteration, self.state_dict(), self.cfg.loop.keep)
        self.fabric.barrier()

    def restore(self, run: Path, weights_only: bool = False, last: int | None = None) -> int:
        """Load the newest checkpoint of a run's folder, up to step `last`, as `load_state_dict` does; its step.

        A ConfigError if its weights are not of this shape, or its task family is another and more than weights is wanted; a
        StorageError if there is no complete one.
        """
        step, state = checkpoint.load(run / "checkpoints", last, rows=not weights_only)
        if not weights_only:
            checkpoint.refuse_other_family(state.get("family"), self.family.described(), str(run))
        checkpoint.refuse_mismatch(state["algorithm"], self.algorithm.state_dict(), str(run))
        self.load_state_dict(state, weights_only)
        return step
