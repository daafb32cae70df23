"""One line an event: text, JSON, and the journal's priorities."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from snapfs import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    logs.bind_structlog()


def lines(form: str, environ: dict[str, str] | None = None) -> list[str]:
    stream = io.StringIO()
    logs.configure("info", form, stream=stream, environ=environ or {})
    log = structlog.get_logger("snapfs.test")
    log.debug("hidden")
    log.info("snapshot.committed", key="a b", name="c", dur_ms=3)
    logging.getLogger("library").error("went %s", "wrong")
    return stream.getvalue().splitlines()


def test_text_is_an_event_name_and_fields() -> None:
    ours, theirs = lines("text")
    assert ours.endswith("INFO snapshot.committed key='a b' name=c dur_ms=3")
    assert theirs.endswith("ERROR went wrong")
    assert ours.startswith("20")


def test_json_is_one_object_a_line() -> None:
    ours, theirs = (json.loads(line) for line in lines("json"))
    assert ours["event"] == "snapshot.committed"
    assert ours["dur_ms"] == 3
    assert theirs["level"] == "error"


def test_the_journal_gets_priorities_and_no_time() -> None:
    ours, theirs = lines("text", {"JOURNAL_STREAM": "8:1"})
    assert ours == "<6>INFO snapshot.committed key='a b' name=c dur_ms=3"
    assert theirs == "<3>ERROR went wrong"


def test_a_traceback_keeps_its_lines_and_priority() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, environ={"JOURNAL_STREAM": "8:1"})
    try:
        raise ValueError("no")
    except ValueError:
        structlog.get_logger("snapfs.test").exception("call.failed", method="X")
    got = stream.getvalue().splitlines()
    assert got[0] == "<3>ERROR call.failed method=X"
    assert got[-1] == "<3>ValueError: no"
