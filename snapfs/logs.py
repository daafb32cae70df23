"""Logging: an event name and fields, one line each, on standard error.

`snapshot.committed key=a name=b dur_ms=3`. As text for people, as JSON for programs. Under
systemd's journal a line carries its priority (sd-daemon(3)) and leaves the time to the journal.
structlog writes through the standard library's `logging`, so libraries' records look alike
and tests see every record.
"""

from __future__ import annotations

import logging
import os
import sys
import syslog
from collections.abc import Mapping
from typing import IO, Any

import structlog

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure(
    level: str = "info",
    form: str = "text",
    *,
    stream: IO[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Send every record of `level` and above to `stream` (standard error) in the given form."""
    target = stream if stream is not None else sys.stderr
    journal = "JOURNAL_STREAM" in environ and not target.isatty()
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared(journal=journal),
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(form, journal=journal),
            ],
        )
    )
    # No line says where in the code it was logged or by which thread: do not find that out.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    bind_structlog(journal=journal)


def to_syslog(program: str) -> None:
    """Send every record to syslog(3) from now on, for who has no standard error any more.

    The level stays as it was configured. The C library connects again by itself when the system's
    logger is restarted; where there is none, records are lost.
    """
    steps: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    steps += [_text, _without_priority]
    handler = _Syslog(program)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared(journal=True), processors=steps
        )
    )
    logging.getLogger().handlers = [handler]
    bind_structlog(journal=True)


class _Syslog(logging.Handler):
    def __init__(self, program: str) -> None:
        super().__init__()
        syslog.openlog(program, syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        priority = _PRIORITIES.get(record.levelname.lower(), syslog.LOG_INFO)
        for line in self.format(record).split("\n"):
            syslog.syslog(priority, line)


def bind_structlog(*, journal: bool = False) -> None:
    """Route structlog's loggers through `logging`, whatever handles records there."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(journal=journal),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _shared(*, journal: bool) -> list[Any]:
    steps: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.format_exc_info,
    ]
    if not journal:
        steps.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    return steps


def _renderers(form: str, *, journal: bool) -> list[Any]:
    render = _json if form == "json" else _text
    return [render, _with_priority] if journal else [render, _without_priority]


def _json(_logger: object, _name: str, event: dict[str, Any]) -> tuple[str, str]:
    level = event.get("level", "info")
    renderer = structlog.processors.JSONRenderer(default=str)
    return level, str(renderer(_logger, _name, event))


def _text(_logger: object, _name: str, event: dict[str, Any]) -> tuple[str, str]:
    level = event.pop("level", "info")
    stamp = event.pop("timestamp", "")
    trace = event.pop("exception", "")
    words = [stamp, level.upper(), str(event.pop("event", ""))]
    words += [f"{key}={_value(value)}" for key, value in event.items()]
    line = " ".join(word for word in words if word)
    return level, f"{line}\n{trace}" if trace else line


def _value(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(mark in text for mark in ' "=')
    return text if plain else repr(text)


def _with_priority(_logger: object, _name: str, event: Any) -> str:
    level, line = event
    mark = f"<{_PRIORITIES.get(level, 6)}>"
    return "\n".join(mark + part for part in line.split("\n"))


def _without_priority(_logger: object, _name: str, event: Any) -> str:
    return str(event[1])
