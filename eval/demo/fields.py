"""Reading the fields of a check, so that a bad one is refused by name."""

from collections.abc import Mapping

MAX_TEXT = 20_000
MAX_LIST = 100


class CheckError(ValueError):
    """A check that cannot grade anything; the message names the kind, the field and the fault."""


class Fields:
    """The fields of one check; each is read once, and `finish` refuses those nobody read."""

    def __init__(self, kind: str, fields: Mapping[str, object]) -> None:
        self._kind = kind
        self._left = dict(fields)

    def error(self, name: str, fault: str) -> CheckError:
        return CheckError(f"check {self._kind!r}: field {name!r} {fault}")

    def take(self, name: str) -> object:
        """The raw value of a required field."""
        if name not in self._left:
            raise self.error(name, "is missing")
        return self._left.pop(name)

    def has(self, name: str) -> bool:
        return name in self._left

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, f"must be a non-empty string, got {value!r}")
        if len(value) > MAX_TEXT:
            raise self.error(name, f"is longer than {MAX_TEXT} characters")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of distinct non-empty strings; an absent field is an empty tuple."""
        if not self.has(name):
            return ()
        value = self.take(name)
        if not isinstance(value, list) or not 0 < len(value) <= MAX_LIST:
            raise self.error(name, f"must be a list of 1 to {MAX_LIST} strings, got {value!r}")
        for item in value:
            if not isinstance(item, str) or not item.strip():
                raise self.error(name, f"holds {item!r}, which is not a non-empty string")
        if len(set(value)) < len(value):
            raise self.error(name, "repeats a string")
        return tuple(value)

    def number(self, name: str, default: float | None = None) -> float:
        if default is not None and not self.has(name):
            return default
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, got {value!r}")
        if not abs(value) < 1e15:
            raise self.error(name, f"must be finite and below 1e15, got {value!r}")
        return float(value)

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to 100,000."""
        if default is not None and not self.has(name):
            return default
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
            raise self.error(name, f"must be a whole number from 1 to 100000, got {value!r}")
        return value

    def finish(self) -> None:
        if self._left:
            raise self.error(min(self._left), "is unknown to this kind")
