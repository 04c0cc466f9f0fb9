"""What /openapi.json says. `python -m orchestrator.api.openapi > docs/openapi.json` writes the copy that is in the docs."""

from __future__ import annotations

import json
import sys
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from orchestrator.api import shapes

DESCRIPTION = (
    "Searches of galleries while their embeddings are refreshed. Every operation but `/livez` and `/readyz` needs the header "
    '`Authorization: Bearer TOKEN`; every error is `{"error": {"code", "message"}}`.'
)
_COMPONENTS = "#/components/schemas/{model}"
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}


def body_of(shape: Any, name: str | None = None) -> dict[str, Any]:
    """A JSON body of this shape; `name`: it is a component of its own."""
    schema = TypeAdapter(shape).json_schema(ref_template=_COMPONENTS)
    # Of several exactly one fits: none allows another's names.
    schema = {"oneOf": schema["anyOf"]} if name is None else {"$ref": _COMPONENTS.format(model=name)}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def form_of() -> dict[str, Any]:
    """A form with a picture's file, and the options of a search."""
    options = TypeAdapter(shapes.UploadOptions).json_schema(ref_template=_COMPONENTS)["properties"]
    schema = {
        "type": "object",
        "properties": {
            "file": {"type": "string", "format": "binary", "description": "The picture's file, with a name."},
            "k": options["k"],
            "where": options["where"],
            "match": options["match"],
        },
        "required": ["file"],
        "additionalProperties": False,
    }
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": schema,
                "encoding": {
                    "where": {"contentType": "application/json"},
                    "match": {"contentType": "application/json"},
                },
            }
        },
    }


def complete(app: FastAPI, most_queries: int) -> None:
    """Let an application describe itself: with our bodies, tokens and errors instead of the framework's."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, most_queries)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _described(app: FastAPI, most_queries: int) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    batch = TypeAdapter(shapes.BatchSearch).json_schema(ref_template=_COMPONENTS)
    batch["properties"]["queries"]["maxItems"] = most_queries
    searches = TypeAdapter(shapes.Search).json_schema(ref_template=_COMPONENTS)
    schemas |= searches["$defs"] | batch.pop("$defs") | {"BatchSearch": batch}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    for operation in (each for path in document["paths"].values() for each in path.values()):
        responses = operation["responses"]
        responses.pop("422", None)  # what does not fit is 400, or 404 in a path
        if "429" in responses:
            responses["429"]["headers"] = _RETRY
    return document


def main() -> None:
    """Write the document; no ledger is asked for it."""
    from orchestrator.api.app import make_app
    from orchestrator.context import Context
    from orchestrator.settings import Settings

    # Nothing is opened until the application starts, and this one never does.
    context = Context(settings=Settings(), engine=None, broker=None, embedded=False)  # type: ignore[arg-type]
    document = make_app(context, None).openapi()
    sys.stdout.write(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
