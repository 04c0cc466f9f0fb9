"""The shapes of requests and answers: what is checked, and what /openapi.json says."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MOST_ANSWERS = 1000
# Beyond the largest models; a body's length is limited before it is parsed.
MOST_DIMENSIONS = 65_536
MOST_ATTRIBUTES, MOST_VALUES = 20, 1000
# Names and values of attributes, as keys and labels are limited.
MOST_CHARACTERS = 1024
# Without NUL; not empty and not blank, whatever a dialect of patterns takes for blank.
NO_NUL = r"^[^\x00]*$"
# NUL, and half of a pair of surrogates, which JSON can write.
_NO_TEXT = r"[\x00\ud800-\udfff]"
_SEEN = r"[^\x00-\x20\x7f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
PLAIN = rf"^[^\x00]*{_SEEN}[^\x00]*$"


def _plain(text: str) -> str:
    # Not by PLAIN itself: it takes the square of the length where the last character is wrong.
    if re.search(_NO_TEXT, text) or re.search(_SEEN, text) is None:
        raise ValueError("it must be plain text and not empty")
    return text


def _no_nul(text: str) -> str:
    if re.search(_NO_TEXT, text):
        raise ValueError("it must be plain text")
    return text


def _whole(number: object) -> object:
    """JSON does not tell 10.0 from 10."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _has_length(vector: list[float]) -> list[float]:
    if not any(vector):
        raise ValueError("a vector of zeros points nowhere")
    return vector


Plain = Annotated[str, AfterValidator(_plain), Field(min_length=1, json_schema_extra={"pattern": PLAIN})]
Value = Annotated[
    str,
    AfterValidator(_no_nul),
    Field(max_length=MOST_CHARACTERS),
]
K = Annotated[
    int,
    Field(ge=1, le=MOST_ANSWERS, description="How many items at most."),
    BeforeValidator(_whole),
]
_ONE = {"type": "string", "maxLength": MOST_CHARACTERS, "pattern": NO_NUL}
Where = Annotated[
    dict[Value, Value | Annotated[list[Value], Field(min_length=1, max_length=MOST_VALUES)]],
    Field(min_length=1, max_length=MOST_ATTRIBUTES),
    WithJsonSchema(
        {
            "type": "object",
            "description": "Only items with these attributes: name → value, or one of several values. `label` is one.",
            "examples": [{"label": ["bicycle", "car"]}],
            "minProperties": 1,
            "maxProperties": MOST_ATTRIBUTES,
            "propertyNames": {"maxLength": MOST_CHARACTERS, "pattern": NO_NUL},
            "additionalProperties": {
                "anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1, "maxItems": MOST_VALUES}]
            },
        }
    ),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextQuery(_Request):
    """A text, for a gallery of texts."""

    text: Plain = Field(examples=["a red bicycle"])


class KeyQuery(_Request):
    """An item of the gallery itself, by its key."""

    key: Plain = Field(examples=["holiday/1.jpg"])


class ImageQuery(_Request):
    """A picture, for a gallery of images."""

    image: Plain = Field(description="The file in base64.", json_schema_extra={"format": "byte"})


class VectorQuery(_Request):
    """A vector of the model that serves; any length but zero: it is normalised here."""

    vector: Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)]],
        AfterValidator(_has_length),
        Field(
            min_length=1,
            max_length=MOST_DIMENSIONS,
            json_schema_extra={"contains": {"not": {"const": 0}}},
        ),
    ]
    model: Plain | None = Field(
        None, description="The model that made it: 409 where another one serves.", json_schema_extra=None
    )


class _Asked(_Request):
    k: K = 10
    where: Where | None = None


Match = Annotated[
    bool,
    Field(
        description="Whether the best are verified by local matching and ranked by it; hits have `matches` and `verified` then."
    ),
]


class TextSearch(TextQuery, _Asked):
    """A search by a text."""


class KeySearch(KeyQuery, _Asked):
    """A search by an item."""

    match: Match = False


class ImageSearch(ImageQuery, _Asked):
    """A search by a picture."""

    match: Match = False


class VectorSearch(VectorQuery, _Asked):
    """A search by a vector."""


Query = TextQuery | KeyQuery | ImageQuery | VectorQuery
Search = TextSearch | KeySearch | ImageSearch | VectorSearch


SEARCHES: dict[str, type[TextSearch | KeySearch | ImageSearch | VectorSearch]] = {
    "text": TextSearch,
    "key": KeySearch,
    "image": ImageSearch,
    "vector": VectorSearch,
}
QUERIES: dict[str, type[TextQuery | KeyQuery | ImageQuery | VectorQuery]] = {
    "text": TextQuery,
    "key": KeyQuery,
    "image": ImageQuery,
    "vector": VectorQuery,
}


class BatchOptions(_Asked):
    """How all queries of a batch are answered."""


class UploadOptions(_Asked):
    """How an uploaded picture is answered."""

    match: Match = False


class BatchSearch(_Asked):
    """Several queries, answered from one and the same state of the gallery."""

    queries: list[Query] = Field(min_length=1)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Hit(_Answer):
    """One item that was found."""

    row: int
    key: str
    uri: str
    label: str | None
    attributes: dict[str, str] = Field({}, description="Of the content that its vector was made of.")
    score: float = Field(description="Cosine similarity.")
    rollout_id: int = Field(description="The rollout that embedded the item.")
    model: str | None = Field(description="The model of its vector: with the rollout, the item's version.")
    matches: int | None = Field(
        None,
        description="Of a search with `match`: points that match the query; null where it was not compared.",
    )
    verified: bool | None = Field(
        None, description="Of a search with `match`: whether it is a copy, by votes and number of matches."
    )


class Hits(_Answer):
    """The nearest items, and what answered."""

    model: str = Field(description="The model that the query is of.")
    rollout: int | None = Field(description="The rollout that serves.")
    log_sequence: int = Field(description="The place of the gallery's log that was answered at.")
    log_sequences: list[int] | None = Field(
        None,
        description="Only where shards were at several places of it: each one's; `log_sequence` is the lowest.",
    )
    coverage_ratio: float = Field(
        ge=0, le=1, description="How much of the gallery that rollout has embedded."
    )
    guarded: bool = Field(description="Whether the model before helped, because the query was at risk.")
    hits: list[Hit]


SYSTEM = Field(description="While a canary goes on: which of its two systems answered; else null.")


class SearchAnswer(Hits):
    """The answer to a search."""

    schema_version: Literal[1] = 1
    gallery: str
    system: Literal["old", "new"] | None = SYSTEM


class Problem(_Answer):
    """What was wrong: a stable word, and a sentence."""

    code: str
    message: str


class Failure(_Answer):
    """Every error's body."""

    error: Problem


class BatchAnswer(_Answer):
    """An answer or an error a query, in their order. All answers have the same model, rollout and place of the log."""

    schema_version: Literal[1] = 1
    gallery: str
    system: Literal["old", "new"] | None = SYSTEM
    answers: list[Hits | Failure]


class Live(_Answer):
    """The process lives."""

    status: Literal["ok"]


class Ready(_Answer):
    """Whether to send searches here; `reasons` for those who have the token."""

    status: Literal["ready", "degraded", "not_ready"]
    reasons: list[str] | None = None


class Gallery(_Answer):
    """A gallery, and what serves it."""

    model_config = ConfigDict(extra="allow")

    id: int
    name: str
    modality: Literal["image", "text", "video"] = Field(description="What every item is.")
    other_modalities: list[Literal["image", "text", "video"]] = Field(
        description="What some items are besides."
    )
    n_items: int
    source: str | None
    model: str | None = Field(description="The model that serves it; null before its first embedding.")
    rollout: int | None = Field(description="Its newest rollout.")
    state: str | None = Field(description="That rollout's state.")


class Galleries(_Answer):
    """Every gallery."""

    schema_version: Literal[1] = 1
    galleries: list[Gallery]


class Rollout(_Answer):
    """A row of `reporting.rollout_status`; durations in seconds, ratios from 0 to 1."""

    model_config = ConfigDict(extra="allow")

    id: int
    gallery: str
    kind: str
    from_model: str | None
    to_model: str
    adapter: str | None
    state: str
    sub_state: str | None
    reason: str | None
    total: int
    pending: int
    leased: int
    committed: int
    quarantined: int
    rate_per_s: float | None
    eta_s: float | None
    coverage: float | None
    started_at: datetime | None
    last_progress_at: datetime | None
    paused_s: float
    actor: str
    strategy: str | None
    plan_revision: int | None


class Rollouts(_Answer):
    """The newest rollouts, at most 100."""

    schema_version: Literal[1] = 1
    rollouts: list[Rollout]


class Queue(_Answer):
    """A row of `reporting.queue_status`: what waits in one band of priority."""

    model_config = ConfigDict(extra="allow")

    rollout: int
    band: int
    queue_state: str
    depth: int
    leased: int
    oldest_age_s: float | None


class OneRollout(Rollout):
    """A rollout and its queue."""

    schema_version: Literal[1] = 1
    queue: list[Queue]
