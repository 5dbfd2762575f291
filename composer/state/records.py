"""The records of the shared state: what is registered, live, uploaded, trained and allowed in.

All are frozen, and are written as JSON. Times are Unix seconds.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from experts.spec import ExpertId, ExpertSpec

EndpointState = Literal["starting", "ready", "unresponsive", "failed"]
ExpertState = Literal[
    "registered", "starting", "verifying", "ready", "parked", "draining", "failed"
]
Source = Literal["config", "api"]
VersionSource = Literal["config", "training", "import"]
TrainingState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Scope = Literal["user", "admin"]
Label = Annotated[str, Field(max_length=200)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Endpoint(Record):
    """Where an engine listens, and whether it can be asked. `base_url` ends before `/v1`.

    `api_base` is for the bridge to other providers: the provider's address, where it is not the
    one that the bridge knows. `life` changes each time the engine starts anew. `serves` are the
    experts that the running process knows (None: whatever it is asked for); `refused` says of those
    that it could not be started with why.
    """

    engine: str
    base_url: str
    state: EndpointState
    reason: str = ""
    api_key_env: str | None = None
    api_base: str | None = None
    life: str = ""
    serves: tuple[str, ...] | None = None
    refused: dict[str, str] = Field(default_factory=dict)


class ExpertRecord(Record):
    """A registered expert. `drained`: an operator took it out of rotation; `removing`: it is being
    drained so that it can be forgotten."""

    spec: ExpertSpec
    source: Source = "config"
    registered_at: float = 0.0
    drained: bool = False
    removing: bool = False


class ExpertStatus(Record):
    """How far an expert is on its way to taking traffic. Only `ready` experts take any.

    `failures` in a row so far; the next try is at `retry_at` (0: none is planned). `life` is the
    engine's life in which it was verified last.
    """

    state: ExpertState
    reason: str = ""
    since: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    life: str = ""


class CompositionVersion(Record):
    """An immutable version of a composition; `artefact` is its folder on this host.

    `version` is the hash of the artefact's content; `summary` holds the figures of its training
    report; `training` the job that made it.
    """

    name: ExpertId
    version: str
    artefact: str
    quality_weight: float = 1.0
    source: VersionSource = "config"
    created_at: float = 0.0
    created_by: str = ""
    training: str | None = None
    experts: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    summary: dict[str, Any] = Field(default_factory=dict)


class LiveRecord(Record):
    """Which version of a composition is live, and which were before it, newest first."""

    current: CompositionVersion
    former: tuple[str, ...] = ()
    changed_at: float = 0.0


class KeyRecord(Record):
    """An API key: only the SHA-256 of its secret is kept. `hint` is how the secret begins."""

    id: str
    name: Label
    digest: str
    scopes: frozenset[Scope]
    created_at: float
    hint: str = ""


class CacheFlush(Record):
    """When the decision cache of a composition's version was flushed."""

    at: float


class DatasetRecord(Record):
    """Uploaded labelled task data and where it came from. `file` is its place on this host.

    `categories` and `experts` count prompts and outcomes by name, `means` holds the mean score of
    each expert and what its answers took; `bad_lines` are the first lines that could not be read,
    of `n_bad`.
    """

    id: str
    name: Label
    source: str = Field(default="", max_length=2000)
    file: str
    format: Literal["jsonl", "parquet"]
    uploaded_at: float
    uploaded_by: str = ""
    sha256: str
    bytes: int
    n_prompts: int
    n_outcomes: int
    n_preferences: int = 0
    categories: dict[str, int] = Field(default_factory=dict)
    experts: dict[str, int] = Field(default_factory=dict)
    means: dict[str, dict[str, float]] = Field(default_factory=dict)
    n_bad: int = 0
    bad_lines: tuple[str, ...] = ()


class TrainingProgress(Record):
    """`share` of the work done, in [0, 1]; `lines` are the latest messages, oldest first."""

    share: float = 0.0
    lines: tuple[str, ...] = ()


class TrainingRecord(Record):
    """A training job. `experts` empty: all that have outcomes; `version` is what it made."""

    id: str
    composition: ExpertId
    datasets: tuple[str, ...]
    experts: tuple[str, ...] = ()
    quality_weight: float = 1.0
    promote: bool = False
    state: TrainingState = "queued"
    progress: TrainingProgress = TrainingProgress()
    created_at: float = 0.0
    created_by: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    cancel: bool = False
    version: str | None = None
    report: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = ""


class JobRecord(Record):
    """A training that waits or runs. The queue is short, the records of trainings are many."""

    id: str
    created_at: float


class WorkerRecord(Record):
    """A gateway worker's heartbeat: the generation that it serves and its requests in flight."""

    id: str
    pid: int
    started_at: float
    at: float
    generation: int
    in_flight: dict[str, int] = Field(default_factory=dict)
