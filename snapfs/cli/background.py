"""Leaving the foreground: who started the command waits until it works, or hears why it does not.

Until then messages go to standard error; afterwards nobody reads that, so they go to syslog (which
the journal takes too).
"""

from __future__ import annotations

import os
import signal
import sys

import click
import structlog

from snapfs import logs

log = structlog.get_logger(__name__)


class Foreground:
    """Stays attached to the terminal."""

    def announce(self) -> None:
        """Nobody waits to be told."""

    def tell(self, program: str, error: BaseException) -> None:
        """Say on standard error why the command ends."""
        click.echo(f"{program}: {error}", err=True)


class Background(Foreground):
    """A process of its own, whose parent leaves when it announces that it is ready."""

    def __init__(self, program: str, failure: int = 1) -> None:
        """Fork. The parent exits with 0 once the child announces, with `failure` if it ends."""
        self._program = program
        self._is_detached = False
        reader, self._writer = os.pipe()
        child = os.fork()
        if child:
            os.close(self._writer)
            _await(program, child, reader, failure)
        os.close(reader)
        os.setsid()
        os.chdir("/")

    def announce(self) -> None:
        """Let the parent leave, and the terminal go."""
        logs.to_syslog(self._program)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        self._is_detached = True
        os.write(self._writer, b"1")
        os.close(self._writer)

    def tell(self, program: str, error: BaseException) -> None:
        """Say why the command ends where it can be read by now."""
        if self._is_detached:
            log.error("overlay.failed", error=str(error))
        else:
            super().tell(program, error)


def _await(program: str, child: int, reader: int, failure: int) -> None:
    """Leave when the child has announced or ended; say what a child that was killed cannot."""
    with open(reader, "rb") as pipe:
        if pipe.read():
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        click.echo(f"{program}: killed by {name} before it could mount; try again", err=True)
        sys.stderr.flush()
    os._exit(failure)
