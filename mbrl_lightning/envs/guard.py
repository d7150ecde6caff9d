"""One guard around all of a user's code: what it raises, returns or never returns becomes an EnvError that says where."""

from __future__ import annotations

import contextlib
import functools
import signal
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec, require_finite, require_finite_action
from mbrl_lightning.errors import ConfigError, EnvError, MBRLError

OURS = str(Path(__file__).parents[1])
LIBRARIES = (OURS, *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib", "scripts")), "<")
REMEDY = "mend the environment; `python -m mbrl_lightning.check_env` tries it quickly"


class HangError(EnvError):
    """A call did not come back in time."""


class _Late(BaseException):
    """Breaks a call off; no Exception, so that environments that swallow those let it through."""


@dataclass(frozen=True)
class Guard:
    """Calls functions of a user, whose family or file has this ``name``, for ``seconds`` at most (0: as long as they like).

    ``remedy`` is for what they raise.

    A call that ignores signals (compiled code in an endless loop) or is made outside the main thread cannot be broken off.
    """

    name: str
    seconds: float = 0.0
    remedy: str = REMEDY

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < 1e9:
            raise ConfigError(f"{self.name}: call_seconds={self.seconds}", "Give seconds, 0 for as long as it takes.")

    def call(
        self, what: str | Callable[[], str], function: Callable[..., Any], *arguments: Any, calls: int = 1, **named: Any
    ) -> Any:
        """``function(*arguments, **named)``; ``what`` tells the call, one that does the work of many ``calls`` gets their time.

        Raises:
            EnvError: it raised anything but our own errors and a keyboard's interrupt, ``sys.exit`` included.
            HangError: it took too long.
        """
        try:
            with _alarm(self.seconds * max(calls, 1)):
                return function(*arguments, **named)
        except (MBRLError, KeyboardInterrupt):
            raise
        except _Late as late:
            raise HangError(
                f"{self.name}: {_text(what)} did not come back within {self.seconds * calls:g} s ({_place(late)}).",
                "find out what it waits for; if it is only slow, give it more: gym_family(call_seconds=...).",
            ) from None
        except BaseException as error:
            if isinstance(error, SystemExit) and _ours(error):  # a second signal ends the run
                raise
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            raise EnvError(f"{self.name}: {_text(what)} raised {said} ({_place(error)}).", self.remedy) from error

    def refuse(self, what: str, found: str, wanted: str) -> EnvError:
        """The error for a wrong value that a call returned."""
        return EnvError(f"{self.name}: {what} returned {found}, not {wanted}.", f"Return {wanted}.")


def _text(what: str | Callable[[], str]) -> str:
    return what if isinstance(what, str) else what()


def _place(error: BaseException) -> str:
    """File and line of the user's code that an error comes from, or that led to it; else of the library's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    inner = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in (*traceback.extract_stack(), *inner) if not frame.filename.startswith(LIBRARIES)]
    frame = (frames or inner)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _ours(error: BaseException) -> bool:
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OURS)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise _Late in the main thread after ``seconds``, and again each second if that was swallowed."""
    if not seconds or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise _Late

    handler = signal.signal(signal.SIGALRM, late)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, handler)


class GuardedSimulator:
    """A user's own simulator ``inner``, every call of which goes through the guard; observations are checked."""

    def __init__(self, inner: Any, guard: Guard, spec: EnvSpec) -> None:
        self._inner, self._guard, self._spec = inner, guard, spec

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return functools.partial(self._call, name, value) if callable(value) else value

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        rows = self._inner.batch_size
        if name == "step":
            require_finite_action(self._spec, *arguments[:2], *(None,) * (2 - len(arguments)))
        result = self._guard.call(f"simulator.{name}", method, *arguments, calls=rows, **named)
        if name in ("reset", "step"):
            _expect(self._guard, f"simulator.{name}", result, (rows, self._spec.observation_dim))
            result = result.float()
            require_finite(self._spec, result)
        return result


def guarded_family(family: TaskFamily, guard: Guard) -> TaskFamily:
    """``family`` with the user's functions and simulators behind ``guard``, tried once on zeros; ours stay as they are."""
    width = len(family.parameters)
    for what, tasks in (("test", family.test), ("extreme", family.extreme)):
        if not isinstance(tasks, Tensor) or tasks.ndim != 2 or (len(tasks) and tasks.shape[1] != width):
            raise guard.refuse("family()", f"{what} tasks {tasks}", f"a tensor [number of tasks, {width}]")

    def draw(n: int, generator: torch.Generator) -> Tensor:
        tasks = guard.call("draw()", family.draw, n, generator)
        _expect(guard, "draw()", tasks, (n, width))
        return tasks.double()

    def build(tasks: Tensor) -> Any:
        simulator = guard.call("build()", family.build, tasks, calls=len(tasks))
        return simulator if _is_ours(type(simulator)) else GuardedSimulator(simulator, guard, family.spec)

    rescale = family.rescale if _is_ours(family.rescale) else _batched("rescale()", family.rescale, guard, None)
    return replace(family, spec=guarded_spec(family.spec, guard), draw=draw, build=build, rescale=rescale)


def guarded_spec(spec: EnvSpec, guard: Guard) -> EnvSpec:
    """``spec`` with the user's functions behind ``guard``, tried once on zeros."""
    scalars = {"reward": torch.float32, "termination": torch.bool, "training_termination": torch.bool}
    vectors = ("features", "target", "untarget", "action_features", "change", "outcome")
    users: dict[str, Any] = {
        name: _batched(f"{name}()", getattr(spec, name), guard, scalars.get(name))
        for name in (*scalars, *vectors)
        if getattr(spec, name) is not None and not _is_ours(getattr(spec, name))
    }
    if spec.metrics is not None and not _is_ours(spec.metrics):
        users["metrics"] = functools.partial(guard.call, "metrics()", spec.metrics)
    if not users:
        return spec
    spec = replace(spec, **users)
    before, after = (torch.zeros(2, 3, spec.observation_dim, requires_grad=True) for _ in range(2))
    action = torch.zeros(2, 3, spec.action_dim, requires_grad=True)
    given = {"reward": (before, action, after), "action_features": (action,)}
    given |= dict.fromkeys(("target", "change"), (before, after))
    for name in users.keys() - {"metrics", "untarget"}:
        getattr(spec, name)(*given.get(name, (after,)))
    if "untarget" in users:
        spec.untarget(before, spec.target(before, after))
    return spec


def _batched(
    what: str, function: Callable[..., Any], guard: Guard, scalar: torch.dtype | None
) -> Callable[..., Tensor]:
    """A function of tensors [..., D] that gives [...] (``scalar``: of that type, numbers are converted) or [..., any]."""

    def guarded(*arguments: Tensor) -> Tensor:
        value = guard.call(what, function, *arguments)
        batch = torch.broadcast_shapes(*(argument.shape[:-1] for argument in arguments))
        if not isinstance(value, Tensor):
            raise guard.refuse(what, f"a {type(value).__name__}", "a tensor")
        if scalar is torch.float32:
            value = value.to(arguments[-1].dtype)
        shape = batch if scalar else (*batch, *value.shape[-1:])
        _expect(guard, what, value, shape, torch.bool if scalar is torch.bool else None)
        return value

    return guarded


def _expect(guard: Guard, what: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    if not isinstance(value, Tensor) or value.shape != shape or (dtype and value.dtype != dtype):
        found = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise guard.refuse(what, found, f"a tensor of shape {tuple(shape)}" + f" of {dtype}" * bool(dtype))


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("mbrl_lightning.")
