"""The shapes of figures and decisions, for the API's reference and those who process exports."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class ScoreView(BaseModel):
    quality: float = Field(description="Expected score in [0, 1].")
    utility: float = Field(description="What it was ranked by: quality against cost.")


class OutcomeView(BaseModel):
    status: Literal["ok", "error", "cancelled"]
    http_status: int
    interface: Literal["chat", "completions", "embeddings"]
    attempts: int = Field(description="Experts that were asked.")
    failed: list[tuple[str, str]] = Field(description="Experts that failed before, with why.")
    first_token_ms: float | None = Field(description="Streamed answers only.")
    total_ms: float
    prompt_tokens: int | None
    completion_tokens: int | None
    estimated: bool = Field(description="The engine told no tokens: they are a guess.")
    cost_usd: float
    streamed: bool
    error: str | None


class FeedbackView(BaseModel):
    score: float = Field(ge=0, le=1)
    comment: str
    at: float


class DecisionView(BaseModel):
    """A decision, what became of it, and what a client thought of the answer."""

    id: str
    cursor: str = Field(description="Its place in the order of the export.")
    at: float = Field(description="When the answer ended, in Unix seconds.")
    composition: str = Field(description="Empty if the request named its expert.")
    version: str
    expert: str = Field(description="The expert ranked first.")
    answered_by: str | None
    category: str
    category_probability: float
    uncertainty: float
    general: bool = Field(description="Whether the router was unsure of the category.")
    reason: str
    cache: Literal["hit", "miss", "off"]
    kept: bool = Field(description="Whether the session stayed with its expert.")
    route_ms: float
    queue_ms: float
    saved_ms: float
    ranking: list[str]
    scores: dict[str, ScoreView]
    ruled_out: dict[str, str]
    outcome: OutcomeView
    feedback: FeedbackView | None
    key: str = Field(description="Id of the API key used, empty if none was.")
    prompt: str | None = Field(default=None, description="Only where the operator keeps prompts.")


class LatencyFigures(BaseModel):
    """Milliseconds; percentiles are within 5%. Null where nothing was measured."""

    n: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Latencies(BaseModel):
    queue: LatencyFigures = Field(description="Of routing, the wait for the encoder.")
    routing: LatencyFigures = Field(description="To the decision.")
    first_token: LatencyFigures = Field(description="From arrival; streamed answers only.")
    total: LatencyFigures = Field(description="From arrival to the answer's end.")


class CacheFigures(BaseModel):
    hit: int
    miss: int
    off: int = Field(description="Requests that name their expert, or no cache.")
    hit_rate: float | None
    saved_ms: float = Field(description="What scoring would have taken, had there been no hits.")


class TokenFigures(BaseModel):
    prompt: int
    completion: int
    estimated_requests: int = Field(description="Requests whose tokens no engine counted.")


class FeedbackFigures(BaseModel):
    n: int
    mean: float | None


class Figures(BaseModel):
    """What happened to a group of requests."""

    requests: int
    ok: int
    errors: int
    cancelled: int = Field(description="The client went before the answer's end.")
    fallbacks: int = Field(description="Attempts that failed and moved on down the ranking.")
    share: float = Field(description="Of all requests of the span.")
    cache: CacheFigures
    tokens: TokenFigures
    cost_usd: float
    latency_ms: Latencies
    feedback: FeedbackFigures


class Point(Figures):
    """The figures of one step of time, which begins at `at`."""

    at: int


class Requests(BaseModel):
    at: int
    requests: int


class StatsView(BaseModel):
    """Figures of a span of time; the series have a point for each step, also where nothing was."""

    object: Literal["composer.stats"]
    start: int = Field(alias="from")
    end: int = Field(alias="to")
    step_s: int
    totals: Figures
    by_expert: dict[str, Figures]
    by_category: dict[str, Figures]
    by_composition: dict[str, Figures] = Field(
        description="`direct`: requests that name their expert."
    )
    series: list[Point]
    series_by_expert: dict[str, list[Requests]]


class DecisionList(BaseModel):
    object: Literal["list"]
    data: list[DecisionView]


def decision_schema() -> dict[str, Any]:
    return DecisionView.model_json_schema()
