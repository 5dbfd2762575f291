"""The shape of a stored decision, as a JSON schema for those who process exports."""

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


def decision_schema() -> dict[str, Any]:
    return DecisionView.model_json_schema()
