"""The data plane's operations, as the OpenAPI document tells of them."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.feedback import FeedbackRequest
from gateway.requests import (
    SESSION_HEADER,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    RouteRequest,
)

Schema = dict[str, Any]

REF = "#/components/schemas/"
_MESSAGES = [{"role": "user", "content": "What is 47 + 38?"}]
_REQUESTS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    RouteRequest,
    FeedbackRequest,
)
_TELLING = "Only if the request's `composer` says `explain`."

_HEADERS: dict[str, str] = {
    "x-composer-decision": "Id of the decision: `/v1/feedback` and `/admin/v1/decisions` take it.",
    "x-composer-expert": "The expert that answered.",
    "x-composer-category": "The category that was routed on; `direct` if the request named its "
    "expert.",
    "x-composer-cache": "Whether the scores came from the decision cache: `hit`, `miss` or `off`.",
    "x-composer-attempts": "How many experts were asked until one answered.",
    "x-composer-route-ms": "Milliseconds that routing took.",
    "x-composer-reason": f"Why this expert, in words. {_TELLING}",
    "x-composer-category-probability": f"How sure the router was. {_TELLING}",
}


def schemas() -> dict[str, Schema]:
    """Components: the requests' models, and what is answered."""
    _, found = models_json_schema(
        [(model, "validation") for model in _REQUESTS], ref_template=f"{REF}{{model}}"
    )
    return {**found["$defs"], **_ANSWERS}


def headers() -> dict[str, Schema]:
    """Components: what an answer's headers tell."""
    return {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
    }


def paths() -> dict[str, Schema]:
    """The operations by path."""
    return {
        "/v1/chat/completions": {
            "post": _relayed(
                "Answer a chat",
                "As in the OpenAI API. Fields that are not listed are the engine's business and "
                "are relayed to it. `model` is a composition or an expert.",
                ChatRequest,
                {"model": "auto", "messages": _MESSAGES, "max_tokens": 60},
                "Completion",
                streams=True,
            )
        },
        "/v1/completions": {
            "post": _relayed(
                "Continue a text",
                "As in the OpenAI API; prompts are texts.",
                CompletionRequest,
                {"model": "general", "prompt": "Once upon a time", "max_tokens": 20},
                "Completion",
                streams=True,
            )
        },
        "/v1/embeddings": {
            "post": _relayed(
                "Embed texts",
                "By an expert that makes embeddings, or by the encoder of the routers: its name "
                "stands last in `/v1/models`.",
                EmbeddingsRequest,
                {"model": "auto", "input": "What is 47 + 38?"},
                "Embeddings",
            )
        },
        "/v1/route": {
            "post": _operation(
                "Say where a prompt would go",
                "The decision alone: nothing is generated. Give `prompt` or `messages`.",
                RouteRequest,
                {"prompt": "What is 47 + 38?", "composer": {"explain": True}},
                _json("Decision", "The decision."),
            )
        },
        "/v1/feedback": {
            "post": _operation(
                "Score an answer",
                "How good the answer of a decision was, from 0 to 1. A later score replaces an "
                "earlier one.",
                FeedbackRequest,
                {"decision": "dec-0123456789abcdef", "score": 1, "comment": "exactly"},
                _json("Feedback", "The feedback as it is stored."),
            )
        },
        "/v1/models": {
            "get": {
                **_about("List models", "Live compositions, experts, and the routers' encoder."),
                "responses": {"200": _json("Models", "The list.")},
            }
        },
        "/v1/models/{model}": {
            "get": {
                **_about("Show a model", "One entry of the list."),
                "parameters": [_parameter("model", "path", "Its id.", required=True)],
                "responses": {"200": _json("Model", "The entry.")},
            }
        },
        "/health/live": {
            "get": {
                **_about("Is it alive", "Answers as long as the worker does.", "operations"),
                "security": [],
                "responses": {"200": _json("Health", "It is.")},
            }
        },
        "/health/ready": {
            "get": {
                **_about(
                    "Is it ready",
                    "`ready`, `degraded` (some experts or the state are away), or `starting` "
                    "(503), with the state of each expert.",
                    "operations",
                ),
                "security": [],
                "responses": {
                    "200": _json("Health", "Prompts are answered."),
                    "503": _json("Health", "Nothing can be answered yet."),
                },
            }
        },
        "/metrics": {
            "get": {
                **_about("Metrics", "Counters and histograms for Prometheus.", "operations"),
                "responses": {
                    "200": {
                        "description": "The exposition format of Prometheus.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
        "/openapi.json": {
            "get": {
                **_about("This document", "OpenAPI 3.1 of everything here.", "operations"),
                "responses": {
                    "200": {
                        "description": "The document.",
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                },
            }
        },
    }


def _about(summary: str, description: str, tag: str = "prompts") -> Schema:
    return {"tags": [tag], "summary": summary, "description": description}


def _operation(
    summary: str,
    description: str,
    model: type[BaseModel],
    example: Schema,
    answer: Schema,
) -> Schema:
    body = {"schema": {"$ref": f"{REF}{model.__name__}"}, "example": example}
    return {
        **_about(summary, description),
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": answer},
    }


def _relayed(
    summary: str,
    description: str,
    model: type[BaseModel],
    example: Schema,
    answer: str,
    *,
    streams: bool = False,
) -> Schema:
    """An operation whose answer comes from an expert."""
    success = _json(answer, "The answer of the expert that was chosen.")
    success["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
    if streams:
        success["description"] += (
            " With `stream`, server-sent events: `data: {chunk}` each, at last `data: [DONE]`. "
            "A failure after the first token is a last event with an `error` object."
        )
        success["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        **_operation(summary, description, model, example, success),
        "parameters": [
            _parameter(
                SESSION_HEADER,
                "header",
                "Requests of one session stay with one expert; `composer.session` wins over it.",
            ),
            _parameter("x-request-id", "header", "Your own id of the request, for the logs."),
        ],
    }


def _parameter(name: str, place: str, description: str, *, required: bool = False) -> Schema:
    return {
        "name": name,
        "in": place,
        "required": required,
        "description": description,
        "schema": {"type": "string"},
    }


def _json(name: str, description: str) -> Schema:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"{REF}{name}"}}},
    }


def _object(description: str, **properties: Schema) -> Schema:
    return {"type": "object", "description": description, "properties": properties}


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _number(description: str) -> Schema:
    return {"type": "number", "description": description}


def _list(description: str, kind: str = "object") -> Schema:
    return {"type": "array", "description": description, "items": {"type": kind}}


def _map(description: str, kind: str) -> Schema:
    values = {"type": kind}
    return {"type": "object", "description": description, "additionalProperties": values}


_ANSWERS: dict[str, Schema] = {
    "Error": _object(
        "What is wrong, in the shape of the OpenAI API.",
        error=_object(
            "The error.",
            message=_text("What was wrong with what, and what to do."),
            type=_text("`invalid_request_error`, `rate_limit_error` or `server_error`."),
            param={"type": ["string", "null"], "description": "The field that is wrong."},
            code=_text("Its kind, for programs: `invalid_request`, `model_not_found`, ..."),
            request_id=_text("The id under which the log has it."),
        ),
    ),
    "Completion": _object(
        "A completion as in the OpenAI API.",
        id=_text("Its id."),
        object=_text("`chat.completion` or `text_completion`."),
        created={"type": "integer", "description": "Unix seconds."},
        model=_text("The expert that answered."),
        choices=_list("The answers: `message` or `text`, and `finish_reason`."),
        usage=_map("Tokens: `prompt_tokens`, `completion_tokens`, `total_tokens`.", "integer"),
    ),
    "Embeddings": _object(
        "Embeddings as in the OpenAI API.",
        object=_text("`list`"),
        model=_text("What made them."),
        data=_list("One for each input, in order: `index` and `embedding`."),
        usage=_map("Tokens.", "integer"),
    ),
    "Decision": _object(
        "Where a prompt goes, and why.",
        id=_text("Its id."),
        composition=_text("The composition."),
        version=_text("Its version."),
        expert=_text("The expert ranked first."),
        category=_text("The category that was routed on; `general` if the router was unsure."),
        category_probability=_number("Probability of the most probable category."),
        uncertainty=_number("Entropy of the categories over its maximum, from 0 to 1."),
        general={"type": "boolean", "description": "Whether the router was unsure."},
        reason=_text("Why, in words."),
        cache=_text("`hit`, `miss` or `off`."),
        route_ms=_number("Milliseconds that routing took."),
        queue_ms=_number("Milliseconds of them that the prompt waited for the encoder."),
        saved_ms=_number("Milliseconds that a hit of the cache spared."),
        kept={
            "type": "boolean",
            "description": "Whether the expert stands first because the session is with it.",
        },
        ranking=_list("Experts, best first: the tail is the fallback chain.", "string"),
        scores=_map("With `explain`: expected `quality` and `utility` of each expert.", "object"),
        ruled_out=_map("With `explain`: who may not or can't answer, and why.", "string"),
        probabilities=_map("With `explain`: the categories' probabilities.", "number"),
    ),
    "Feedback": _object(
        "Feedback on a decision.",
        object=_text("`composer.feedback`"),
        decision=_text("The decision's id."),
        score=_number("From 0 to 1."),
        comment=_text("What was said."),
    ),
    "Model": _object(
        "A composition, an expert, or the encoder; `composer` says which.",
        id=_text("What a request's `model` names."),
        object=_text("`model`"),
        owned_by=_text("Whose it is."),
        composer={"type": "object", "description": "Its kind and what is known of it."},
    ),
    "Models": _object(
        "A list of models.",
        object=_text("`list`"),
        data={"type": "array", "items": {"$ref": f"{REF}Model"}},
    ),
    "Health": _object(
        "How it is.",
        status=_text("`live`, `ready`, `degraded` or `starting`."),
        state=_text("`connected` or `away`: the shared state."),
        compositions=_map("The live version of each.", "string"),
        experts=_map("`ready`, or why not.", "string"),
    ),
}
