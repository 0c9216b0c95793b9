"""What every room may write: its own starts and stops, heads it has witnessed, alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStarted:
    """A room started writing under a new lease generation."""

    TYPE: ClassVar[str] = "service.started"
    generation: int
    mode: str
    release: str
    clean: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStopped:
    """A room stopped in good order."""

    TYPE: ClassVar[str] = "service.stopped"
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWitnessed:
    """Another room's audit head was seen, so it can no longer be rewritten unnoticed."""

    TYPE: ClassVar[str] = "audit.head_witnessed"
    service: str
    size: int
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRaised:
    """Something a person should know; acting on it has already happened."""

    TYPE: ClassVar[str] = "alarm.raised"
    code: str
    message: str
    subject: str
