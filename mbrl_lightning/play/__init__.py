"""A run to play with on a local page: `python -m mbrl_lightning.play run=RUN`.

The body in three dimensions, the task's parameters to move while it acts, the policy's belief to choose.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from mbrl_lightning.config import read_run_config
from mbrl_lightning.config.console import answer, make_callable
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, parse
from mbrl_lightning.errors import ConfigError


@dataclass
class Options:
    """Keys of the command line."""

    run: str = option("", "run folder, e.g. runs/cartpole/gssm_aps/seed0, or pretrained:NAME", required=True)
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in, and anybody there can steer")
    port: int = option(8080, "of the page; 0 takes a free one", minimum=0, maximum=65535)
    seed: int = option(0, "of starts, contexts and what `switch now` draws", minimum=0)
    env_file: str | None = option(None, "where the run's env.file is now, if it has moved")


HELP = f"""usage: python -m mbrl_lightning.play run=RUN [key=value ...]

Opens a page with the run's body at work in an unseen task. Sliders (or a menu, where tasks are few) change the task while
it acts; the policy acts under its own belief, none, or another task's; reward, prediction error and belief are drawn as
they come. No display is needed here; open the address in a browser. Ctrl-C ends it.

{describe(Options)}"""


def play(run: str, host: str = "127.0.0.1", port: int = 8080, seed: int = 0, env_file: str | None = None) -> None:
    """Serve the page until interrupted; arguments as on the command line.

    Raises:
        ConfigError: no run, no viser, a port in use, an address that is not this machine's.
        StorageError: the run has no complete checkpoint.
    """
    read_run_config(run, env_file)
    if importlib.util.find_spec("viser") is None:
        raise ConfigError("the page needs viser, which is missing", "pip install 'mbrl_lightning[play]'")
    _require_free(host, port)
    from mbrl_lightning import load

    agent = load(run, env_file)
    import viser

    from mbrl_lightning.play.page import Page
    from mbrl_lightning.play.session import Session

    session = Session(agent, seed)
    with contextlib.redirect_stdout(io.StringIO()):  # its banner, for what is one line of ours
        server = viser.ViserServer(host, port, label="mbrl_lightning", verbose=False)
    try:
        title = f"{agent.algorithm.cfg.algorithm} on {agent.algorithm.cfg.conf}"
        page = Page(server, session, title)
        place = f"[{host}]" if ":" in host else host
        print(f"{title}: open http://{place}:{server.get_port()} in a browser; Ctrl-C ends it", flush=True)
        page.run()
    except KeyboardInterrupt:
        print("closed")
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()
        session.close()


def _require_free(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"host={host} port={port}: {error.strerror}", "give a free port (port=0) and an address of this machine"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return answer(argv, lambda: HELP, lambda words: play(**vars(parse(Options, words, "play"))))


make_callable(__name__)
