"""The OpenAPI document of the gateway, generated from the Structs that decode and encode."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.openai import ChatChunk, ChatCompletion, ChatRequest, Completion, CompletionRequest, Model, ModelList

__all__ = ["document"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_REFUSALS = {
    "400": "A parameter is wrong or not supported, or the context is too long.",
    "401": "The key is bad, missing, revoked or expired.",
    "404": "The model is unknown, or not in the key's scope.",
    "413": "The body is too large.",
    "429": "A limit of the tenant: see retry-after-ms.",
    "503": "The contract cannot be kept now: see retry-after-ms.",
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1, as JSON-compatible data."""
    types = [ChatRequest, CompletionRequest, ChatCompletion, ChatChunk, Completion, Model, ModelList]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    chat_in, completion_in, chat_out, chat_chunk, completion_out, model, model_list = schemas
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headgate", "version": "1"},
        "security": [{"key": []}],
        "paths": {
            "/v1/chat/completions": {"post": _post("Chat completion", chat_in, chat_out, chat_chunk)},
            "/v1/completions": {"post": _post("Text completion", completion_in, completion_out, completion_out)},
            "/v1/models": {"get": _get("Models that this key may use", model_list)},
            "/v1/models/{model}": {
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                "get": _get("One model", model),
            },
            "/health": {"get": _get("The process is alive", {"type": "object"}, public=True)},
            "/ready": {"get": _get("It can serve; 503 with the reasons if not", {"type": "object"}, public=True)},
        },
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _post(summary: str, body: dict[str, Any], answer: dict[str, Any], chunk: dict[str, Any]) -> dict[str, Any]:
    error = _json({"$ref": "#/components/schemas/Error"})
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _json(body)},
        "responses": {
            "200": {
                "description": "The answer, or with `stream` its events.",
                "content": {**_json(answer), "text/event-stream": {"schema": chunk}},
            },
            **{status: {"description": text, "content": error} for status, text in _REFUSALS.items()},
        },
    }


def _get(summary: str, answer: dict[str, Any], *, public: bool = False) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": _json(answer)}},
    }
    return {**operation, "security": []} if public else operation
