"""Calling the public commands, as a user would type them, and timing them.

Each command is a process of its own. What it says (progress, tables) goes to this process's stderr as it says it; what
it prints with `--json` is read.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from histolake.platform.errors import HistolakeError, ServiceError

__all__ = ["StepError", "Steps", "free_port"]

STOP_S = 60.0  # a server that has not ended by then is killed


class StepError(HistolakeError):
    """A command of the demo failed; its own words are above."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Steps:
    """Runs commands, and remembers what was called and how long each step took."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Tables of the commands are as wide as the terminal; a log file has no width.
        width = {} if sys.stderr.isatty() else {"COLUMNS": "140"}
        self.environment = {**width, **os.environ, **environment}
        self.seconds: dict[str, float] = {}
        self.commands: list[str] = []

    @contextmanager
    def timed(self, step: str, what: str) -> Iterator[None]:
        """A step of the demo: announced, and its seconds added up under its name."""
        say(f"\n── {step}: {what}")
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - start

    def call(self, *words: str, accept: Sequence[int] = (0,)) -> int:
        """Run `histolake WORDS...`; its exit code, one of `accept`. Raises `StepError` on any other."""
        return self._finish(self._start(words, stdout=sys.stderr.fileno()), words, accept)[0]

    def ask(self, *words: str, accept: Sequence[int] = (0,)) -> tuple[int, list[dict[str, Any]]]:
        """Run `histolake WORDS... --json`; its exit code and its rows."""
        words = (*words, "--json")
        code, output = self._finish(self._start(words, stdout=subprocess.PIPE), words, accept)
        return code, json.loads(output) if output.strip() else []

    @contextmanager
    def serving(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """Keep `histolake WORDS...` running for the length of the block, then end it as Ctrl-C would."""
        process = self._start(words, stdout=sys.stderr.fileno(), new_session=True)
        try:
            yield process
        finally:
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self, words: Sequence[str], *, stdout: int, new_session: bool = False) -> subprocess.Popen[bytes]:
        line = shlex.join(["histolake", *words])
        self.commands.append(line)
        say(f"$ {line}")
        command = [sys.executable, "-m", "histolake.platform", *words]
        return subprocess.Popen(command, env=self.environment, stdout=stdout, start_new_session=new_session)

    def _finish(
        self, process: subprocess.Popen[bytes], words: Sequence[str], accept: Sequence[int]
    ) -> tuple[int, bytes]:
        try:
            output, _ = process.communicate()
        except BaseException:
            # Ctrl-C reaches the command too; whatever else ends the demo must not leave it running.
            self._end(process)
            raise
        if process.returncode not in accept:
            raise StepError(
                f"`{shlex.join(['histolake', *words])}` ended with {process.returncode}; what it said is above.",
                exit_code=2 if process.returncode == 2 else 1,
            )
        return process.returncode, output or b""


def say(text: str) -> None:
    """A line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(process: subprocess.Popen[bytes], healthy: Any, timeout_s: float) -> None:
    """Return when `healthy()` is true; raises `ServiceError` if the process ends first or time runs out."""
    end = time.monotonic() + timeout_s
    while not healthy():
        if process.poll() is not None:
            raise ServiceError(f"`histolake serve` ended with {process.returncode} before it answered; see above.")
        if time.monotonic() > end:
            raise ServiceError(f"`histolake serve` has not answered within {timeout_s:g} s.")
        time.sleep(0.25)
