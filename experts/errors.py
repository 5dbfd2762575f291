"""The tree of domain errors.

They know nothing of HTTP: the gateway maps each class to a status and an error code. Every message
says what was wrong with what, and what to do.
"""

from collections.abc import Mapping


class ComposerError(Exception):
    """Root of all errors that Composer raises on purpose."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(ComposerError):
    """The request is malformed; `param` names the field."""


class TooLarge(InvalidRequest):
    """The request's body is over the configured bound."""


class TooSlow(InvalidRequest):
    """The request's body did not arrive in time."""


class Forbidden(ComposerError):
    """The request comes from where it must not come from."""


class Unauthenticated(ComposerError):
    """The request needs a key, and has none or a wrong one."""


class NotAllowed(ComposerError):
    """The request's key lacks the scope that is needed."""


class NotFound(ComposerError):
    """There is no record of this id."""


class Conflict(ComposerError):
    """What is asked contradicts what is there: a taken id, an expert in use, a wrong state."""


class UnknownModel(ComposerError):
    """The request names a model that is neither a composition nor an expert."""


class NoEligibleExpert(ComposerError):
    """Every expert was ruled out; `reasons` says by which need (expert id -> reason)."""

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reasons = dict(reasons)


class Retryable(ComposerError):
    """The same request may succeed later; `retry_after_s` says when to try."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Retryable):
    """A bounded queue is full."""


class ExpertUnavailable(Retryable):
    """No expert of the ranking could answer."""


class NotReady(Retryable):
    """The service is starting or has no live composition yet."""


class StateUnavailable(Retryable):
    """The shared state (Redis) can't be reached."""


class DeadlineExceeded(ComposerError):
    """The request's time ran out before an answer began."""


class ConfigError(ComposerError):
    """The configuration is wrong; the message carries file and line where they are known."""


class DataError(ComposerError):
    """Labelled task data can't be used for what was asked of it."""


class ArtefactError(ComposerError):
    """A router artefact is damaged, of another schema, or made for another encoder."""


class ArchiveError(ComposerError):
    """An archive of the state is damaged, hostile, too large, or of a newer version."""


class SetupError(ComposerError):
    """Something that a part needs is not installed or can't be prepared."""


class ProcessError(ComposerError):
    """A local process failed to start or to stay alive."""
