"""The exception tree.

::

    TradingError                      root; every class has a stable ``code``
    ├── InvalidValue                  a value from outside cannot mean what it must mean
    │   ├── UnknownInstrument         no such symbol on this venue
    │   └── UnsupportedFeature        named, understood, deliberately not supported yet
    ├── InvalidTransition             an order was asked to do what its state forbids (our bug or the venue's)
    ├── SignatureRefused              an envelope did not verify
    ├── GateRefused                   execution refused an approval; ``code`` names the failed check
    ├── LedgerError
    │   ├── AlreadyClaimed            the unique row exists: somebody was first
    │   ├── LeaseLost                 another process is the writer now
    │   └── LedgerUnavailable         nothing was written, or it is unknown whether it was
    ├── StaleData                     data exists but is too old to act on
    ├── Unavailable                   a part we depend on does not answer
    ├── ConfigurationError            refuse to start
    └── VenueError                    raised by venue adapters only, always one of these three
        ├── Retryable                 certainly not executed; the same request may be sent again
        ├── NonRetryable              a definitive refusal by the venue
        └── OutcomeUnknown            it may have been executed: reconcile, never resend

Expected outcomes (a risk denial, a venue rejection) are values, not exceptions.
"""

from __future__ import annotations

from typing import ClassVar


class TradingError(Exception):
    """Say what happened, what is known and what to do about it.

    Attributes:
        code: stable, upper-case, machine-readable; never changes between releases.
        suggestion: what the caller can do next, or an empty string.
        allowed: the nearest legal values, if there are any.
    """

    code: str = "TRADING_ERROR"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        suggestion: str = "",
        allowed: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.suggestion = suggestion
        self.allowed = allowed


class InvalidValue(TradingError, ValueError):
    """A value from outside cannot mean what it must mean; fix the argument and ask again."""

    code = "INVALID_VALUE"


class UnknownInstrument(InvalidValue):
    """No instrument with that symbol exists on that venue; ``allowed`` lists the nearest names."""

    code = "UNKNOWN_INSTRUMENT"


class UnsupportedFeature(InvalidValue):
    """The request is understood and deliberately not supported by this release."""

    code = "UNSUPPORTED_FEATURE"


class InvalidTransition(TradingError):
    """An order was asked to do what its state forbids; nothing was changed."""

    code = "INVALID_TRANSITION"


class SignatureRefused(TradingError):
    """An envelope did not verify; its content was not looked at."""

    code = "SIGNATURE_REFUSED"


class GateRefused(TradingError):
    """Execution refused an approval before anything reached a venue; ``code`` names the check."""

    code = "GATE_REFUSED"


class LedgerError(TradingError):
    """The ledger could not do what was asked."""

    code = "LEDGER_ERROR"


class AlreadyClaimed(LedgerError):
    """The unique row already exists; the unit was refused and nothing of it was written.

    Attributes:
        table: the table whose key was taken.
        existing: the row that was there first, by column name.
    """

    code = "ALREADY_CLAIMED"

    def __init__(self, table: str, existing: dict[str, object]) -> None:
        super().__init__(f"{table}: the key is already taken")
        self.table = table
        self.existing = existing


class LeaseLost(LedgerError):
    """Another process has taken the writer's lease; stop, do not retry."""

    code = "LEASE_LOST"


class LedgerUnavailable(LedgerError):
    """The commit did not complete; treat the facts as not written and read before trying again."""

    code = "LEDGER_UNAVAILABLE"


class StaleData(TradingError):
    """Data exists but is too old to act on; wait for a fresh value."""

    code = "STALE_DATA"


class Unavailable(TradingError):
    """A part we depend on does not answer; nothing was done."""

    code = "UNAVAILABLE"


class ConfigurationError(TradingError):
    """The configuration is wrong; the process refuses to start."""

    code = "CONFIGURATION_ERROR"


class VenueError(TradingError):
    """A venue call did not succeed. Adapters raise one of the three subclasses, never this.

    Attributes:
        executed: what is known about execution: ``no`` or ``unknown``.
    """

    code = "VENUE_ERROR"
    executed: ClassVar[str] = "unknown"


class Retryable(VenueError):
    """The request certainly had no effect and may be sent again."""

    code = "VENUE_RETRYABLE"
    executed = "no"


class NonRetryable(VenueError):
    """The venue refused the request for good; sending it again cannot help."""

    code = "VENUE_REFUSED"
    executed = "no"


class OutcomeUnknown(VenueError):
    """The request may have been executed; query by client order id, never resend."""

    code = "VENUE_OUTCOME_UNKNOWN"
