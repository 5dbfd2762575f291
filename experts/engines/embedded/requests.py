"""What travels between the HTTP side and the model thread: a `Generation`, and its `Progress`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from experts.engines.embedded.mixers import Mixed

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's next tokens are chosen and when they end; ranges are checked at the door.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off. Penalties mean what they mean at
    OpenAI (frequency, presence: over generated tokens) and in CTRL (repetition: also the prompt).
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model's makers recommend, for requests that leave a parameter out."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """One token boundary of a request: new text (perhaps none yet) and, at the end, why it ended.

    `completion_tokens` counts every generated token so far, those held back included. `error` is
    set exactly when `finish` is "error".
    """

    text: str
    completion_tokens: int
    finish: FinishReason | None = None
    error: str | None = None


@dataclass(slots=True, eq=False)
class Generation:
    """A request in flight. The event loop creates it and may set `cancelled`; the model thread
    reads that at every token boundary. `on_progress` is called on the event loop only.

    `adapter` is 0 for the bare base, else the adapter's number in the `LoraBank`. `mixed` is set
    when a mixer answers.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    adapter: int
    on_progress: Callable[[Progress], None]
    mixed: "Mixed | None" = None
    cancelled: bool = field(default=False)
