"""The page: a body, what can be changed about it, and three curves. Everybody who opens it sees, and steers, the same."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import viser

from mbrl_lightning.errors import DivergedError, EnvError
from mbrl_lightning.play.scene import Scene, camera
from mbrl_lightning.play.session import BELIEFS, Moment, Session, menu_of, ranges_of
from mbrl_lightning.report.canvas import colour

SHOWN, REDRAWN, PACE, FASTEST = 200, 0.2, 20, 100  # steps of a curve; seconds; steps a second
CURVES = {
    "reward": "reward of each step",
    "error": "prediction error (1: knows nothing)",
    "belief": "what is believed",
}


class Page:
    """Shows a session and does what is asked of it, between its steps and in their thread alone.

    Args:
        server: of viser, with an empty page.
        session: what is shown.
        title: one line.
    """

    def __init__(self, server: viser.ViserServer, session: Session, title: str) -> None:
        self.server, self.session, self.steps = server, session, 0
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._seen: deque[Moment] = deque(maxlen=SHOWN)
        self._scene, self._drawn, self._each = Scene(server.scene), 0.0, 1 / PACE
        self._sliders: list[Any] = []
        server.gui.configure_theme(show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()
        server.scene.set_up_direction("+z")
        server.gui.add_markdown(f"**{title}**")
        self._state = server.gui.add_markdown("")
        self._task_controls()
        choice = server.gui.add_dropdown("belief", BELIEFS, initial_value=session.choice)
        self._on(choice.on_update, lambda: session.believe(choice.value))
        self._paused = server.gui.add_checkbox("pause", initial_value=False)
        self._pace = server.gui.add_slider("steps a second", 1, FASTEST, 1, PACE)
        again = server.gui.add_button("new episode, nothing known")
        self._on(again.on_click, lambda: session.reset(afresh=True))
        panel = server.gui.add_panel()
        with panel.add_tab("curves"):
            self._lines = session.believed().size  # a belief of none may have fewer than one after a context
            known = {"reward": True, "error": session.agent.algorithm.model, "belief": self._lines}
            self._plots = {name: self._plot(name) for name in CURVES if known[name]}
        panel.dock_left()
        self._picture: Any = None
        if (drawing := session.env.drawing()) is not None:
            server.initial_camera.position, server.initial_camera.look_at = camera(drawing)
        self.show()

    # -- controls

    def _on(self, register: Callable[[Callable[[Any], None]], Any], act: Callable[[], None]) -> None:
        """What somebody asks for on the page is done between two steps."""
        register(lambda event: self._asked.put(act) if event.client is not None else None)

    def _task_controls(self) -> None:
        gui, session = self.server.gui, self.session
        names, tasks = session.family.parameters, menu_of(session.family)
        with gui.add_folder("task"):
            if tasks is None:
                for name, (low, high), value in zip(
                    names, ranges_of(session.family), session.task.tolist(), strict=True
                ):
                    step = 10.0 ** np.floor(np.log10((high - low) / 50))
                    low, high = (_short(edge(end / step) * step) for edge, end in ((np.floor, low), (np.ceil, high)))
                    self._sliders.append(
                        gui.add_slider(name, low, high, float(step), _short(round(value / step) * step))
                    )
                    self._on(self._sliders[-1].on_update, self._switch_to_sliders)
            elif len(tasks) > 1:
                rows = {", ".join(f"{n} {v:g}" for n, v in zip(names, row, strict=True)): row for row in tasks.tolist()}
                here = next(text for text, row in rows.items() if row == session.task.tolist())
                self._menu, self._rows = gui.add_dropdown("task", list(rows), initial_value=here), rows
                self._on(self._menu.on_update, lambda: session.switch(torch.tensor(rows[self._menu.value])))
            if tasks is None or len(tasks) > 1:
                self._on(gui.add_button("switch now").on_click, self._switch)
            else:
                gui.add_markdown("nothing varies in this family")

    def _switch_to_sliders(self) -> None:
        self.session.switch(torch.tensor([slider.value for slider in self._sliders], dtype=torch.float64))

    def _switch(self) -> None:
        """Another task of the family; the controls follow."""
        self.session.switch(self.session.elsewhere())
        for slider, value in zip(self._sliders, self.session.task.tolist(), strict=False):
            slider.value = _short(min(max(value, slider.min), slider.max))
        if not self._sliders:
            self._menu.value = next(text for text, row in self._rows.items() if row == self.session.task.tolist())

    # -- what is seen

    def _plot(self, name: str) -> Any:
        names = [f"{name} {line + 1}" for line in range(len(self._values(name)))]
        lines = [viser.uplot.Series(label=each, stroke=colour(line), width=2) for line, each in enumerate(names)]
        series = (viser.uplot.Series(label="step"), *lines)
        empty = tuple(np.zeros(1) for _ in series)
        options: dict[str, Any] = {
            "legend": {"show": False},
            "scales": {"x": {"time": False}},
            "padding": (12, 12, 0, 0),
        }
        return self.server.gui.add_uplot(empty, series, title=CURVES[name], height=130, **options)

    def _values(self, name: str) -> np.ndarray:
        """Curves of what was seen [lines, steps]; before that, of one zero."""
        if name == "belief":
            rows = [moment.belief[: self._lines] for moment in self._seen] or [np.zeros(self._lines)]
            return np.stack([np.pad(row, (0, self._lines - len(row))) for row in rows], 1)  # nothing is where it began
        return np.array([[getattr(moment, name) for moment in self._seen]])

    def show(self) -> None:
        """The body as it is now; a few times a second the curves and the words as well."""
        with self.server.atomic():
            drawing = self.session.env.drawing()
            if drawing is not None:
                self._scene.show(drawing)
            if time.monotonic() - self._drawn < REDRAWN:
                return
            self._drawn = time.monotonic()
            if drawing is None:
                self._show_picture()
            for name, plot in self._plots.items():
                if self._seen:
                    values = self._values(name)
                    steps = np.arange(self.steps - values.shape[1], self.steps, dtype=float)
                    plot.data = (steps, *np.nan_to_num(values))
            if self._seen:
                last = self._seen[-1]
                self._state.content = f"step {last.age}, return {last.total:,.2f}, {1 / self._each:.0f} steps a second"

    def _show_picture(self) -> None:
        picture = self.session.env.render()
        if self._picture is None:
            self._picture = self.server.gui.add_image(picture, label="the body")
        self._picture.image = picture

    # -- time

    def advance(self) -> None:
        """Do what was asked, make a step unless it is paused, and show it.

        A task that the simulator or the policy does not survive ends its episode with a notice.
        """
        try:
            while not self._asked.empty():
                self._asked.get()()
            if not self._paused.value:
                moment = self.session.step()
                self._seen.append(moment)
                self.steps += 1
                if moment.ended:
                    self.session.reset()
        except (EnvError, DivergedError) as error:
            for client in self.server.get_clients().values():
                client.add_notification("a new episode begins", error.cause, auto_close_seconds=10, color="red")
            self.session.reset(afresh=True)
        self.show()

    def run(self) -> None:
        """Until somebody interrupts it."""
        due = time.monotonic()
        while True:
            begun = time.monotonic()
            self.advance()
            due = max(due + 1 / self._pace.value, time.monotonic() - 0.5)  # what is missed is not made up for long
            time.sleep(max(due - time.monotonic(), 0.001))
            self._each = 0.95 * self._each + 0.05 * (time.monotonic() - begun)  # s


def _short(value: float) -> float:
    """A number that a box of five digits shows as a whole."""
    return float(f"{value:.4g}")
