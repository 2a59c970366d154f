"""The server's log on stderr: an event a line, as JSON or as text. Tracebacks go here and nowhere else."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

LOGGER = logging.getLogger("lightwam.serve")


def log_event(event: str, level: int = logging.INFO, *, error: BaseException | None = None, **fields: Any) -> None:
    """Log an event with its fields, and the traceback of `error`."""
    LOGGER.log(level, event, extra={"fields": fields}, exc_info=error)


class LineFormatter(logging.Formatter):
    """Formats a record as {"time", "level", "event", its fields}, or as `time level event key=value`."""

    def __init__(self, form: Literal["json", "text"]) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; a traceback is a field in JSON, and follows the line in text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self.form == "json":
            return json.dumps(line | ({"traceback": trace} if trace else {}), default=str)
        time, level, event = (line.pop(key) for key in ("time", "level", "event"))
        fields = " ".join(f"{key}={value}" for key, value in line.items()).translate(_ONE_LINE)
        return f"{time} {level:7} {event} {fields}".rstrip() + (f"\n{trace}" if trace else "")


_ONE_LINE = {number: f"\\x{number:02x}" for number in (*range(32), 127, 0x85, 0x2028, 0x2029)}
"""escapes for line breaks and control characters in a client's text, which could forge a line"""


def configure(form: Literal["json", "text"]) -> None:
    """Send the server's events, and aiohttp's critical errors, to stderr."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(LineFormatter(form))
    for logger in (LOGGER, logging.getLogger("aiohttp")):
        logger.handlers[:] = [to_stderr]
        logger.propagate = False
    LOGGER.setLevel(logging.INFO)
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
