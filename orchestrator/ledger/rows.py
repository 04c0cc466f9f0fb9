"""What the ledger's rows become at its border: frozen dataclasses, times in UTC, durations in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from models.codecs.codes import CodeShape
from orchestrator.core.strategies import STRATEGIES, Strategy


@dataclass(frozen=True)
class ModelRow:
    """A model. `base_model_id`: of a codec, the model whose embeddings it encodes; None: it embeds items itself."""

    id: int
    name: str
    modality: str
    architecture: str
    dim: int
    digest: str
    fingerprint: str
    uri: str
    manifest: dict[str, Any]
    created_at: datetime
    files: dict[str, int] | None = None
    base_model_id: int | None = None

    @property
    def code_shape(self) -> CodeShape | None:
        """What its vectors are as codes; None where they are floats."""
        if self.base_model_id is None:
            return None
        return CodeShape(self.dim, int(self.manifest["options"]["loops"]))

    @property
    def codes(self) -> int:
        """Dimensions of its codes; 0 where its vectors are floats."""
        return 0 if self.base_model_id is None else self.dim


@dataclass(frozen=True)
class AdapterRow:
    id: int
    name: str
    source_model_id: int
    target_model_id: int
    digest: str
    fingerprint: str
    uri: str
    manifest: dict[str, Any]
    created_at: datetime
    files: dict[str, int] | None = None


@dataclass(frozen=True)
class GalleryRow:
    """A gallery. `n_items` counts rows ever made, deleted ones as well: rows are dense and never used again.

    Attributes:
        modality: what every item is. other_modalities: what some items, or all, are besides.
    """

    id: int
    name: str
    modality: str
    source: str
    n_items: int
    created_at: datetime
    n_deleted: int
    other_modalities: list[str]

    @property
    def modalities(self) -> tuple[str, ...]:
        """All that items are, the gallery's own first."""
        return self.modality, *self.other_modalities


@dataclass(frozen=True)
class ItemRow:
    row: int
    key: str
    uri: str
    label: str | None


@dataclass(frozen=True)
class QueryRow:
    """One query. `attributes`: what it can be sliced by, such as a tenant."""

    no: int
    key: str
    uri: str
    label: str | None
    attributes: dict[str, str]


@dataclass(frozen=True)
class DemandRow:
    """What a gallery's query log sums up to: `retrievals` of all items since `since`."""

    gallery_id: int
    retrievals: int
    since: datetime
    updated_at: datetime


@dataclass(frozen=True)
class QuerySetRow:
    id: int
    gallery_id: int
    name: str
    relevance: str
    source: str
    n_queries: int
    created_at: datetime
    modality: str


@dataclass(frozen=True)
class TowerRow:
    """Queries of `modality` are embedded by `tower` where `model` serves; both are names."""

    model: str
    modality: str
    tower: str
    created_at: datetime


@dataclass(frozen=True)
class BackgroundSetRow:
    """Items that answer no query. The level of a query is its score with the `neighbour`-th nearest of them."""

    id: int
    gallery_id: int
    source: str
    uris: list[str]
    neighbour: int
    beta: float
    created_at: datetime
    removed_at: datetime | None


@dataclass(frozen=True)
class CertificateRow:
    """`tower_of_model_id`: the model whose space the query model, a tower, emits; None: queries are the query model's own."""

    id: int
    query_model_id: int
    gallery_model_id: int
    adapter_id: int | None
    query_set_id: int
    verdict: str
    reason: str
    measured: dict[str, Any]
    created_at: datetime
    tower_of_model_id: int | None = None


@dataclass(frozen=True)
class ModuleRow:
    """A downstream module. `model_id`: the model whose embeddings it takes; `retired_at`: since when nobody uses it."""

    id: int
    name: str
    model_id: int
    architecture: str
    metric: str
    dim: int
    digest: str
    fingerprint: str
    uri: str
    files: dict[str, int]
    manifest: dict[str, Any]
    created_at: datetime
    retired_at: datetime | None


@dataclass(frozen=True)
class ModuleCertificateRow:
    """What a module measured with a model's embeddings; `low` to `high` is the 95 % interval of new - old."""

    id: int
    module_id: int
    model_id: int
    fingerprint: str
    source: str
    n: int
    old_value: float | None
    new_value: float | None
    low: float | None
    high: float | None
    accepted_loss: float
    verdict: str
    reason: str
    measured: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class ContractRow:
    """A module in the eyes of a rollout: see `core.contracts.Contract`. `model`: by name, the one that it was made for."""

    module: str
    model: str
    space: str
    dim: int
    verdict: str | None
    reason: str | None
    serves: bool


@dataclass(frozen=True)
class RolloutRow:
    """One rollout.

    Attributes:
        strategy: the name of a row of `core.strategies`; `how` is that row.
        lifted_items: rows of the table of lifted vectors; 0 where nothing is lifted.
        generation: its fence epoch: work claimed under an older one is refused.
        plan_items: ranks of the plan's permutation.
        n_items: all ranks, with those of items that came late.
        late_revision: bumped when ranks are superseded; a commit that does not know it is asked again.
    """

    id: int
    gallery_id: int
    kind: str
    from_model_id: int | None
    to_model_id: int
    adapter_id: int | None
    certificate_id: int | None
    state: str
    reason: str | None
    generation: int
    order_name: str
    config: dict[str, Any]
    batch_size: int
    n_items: int
    n_batches: int
    committed_batches: int
    committed_items: int
    quarantined_items: int
    extent_uri: str
    adapted_uri: str | None
    actor: str
    created_at: datetime
    deployed_at: datetime | None
    backfill_at: datetime | None
    last_progress_at: datetime | None
    finished_at: datetime | None
    paused_at: datetime | None
    paused_s: float
    plan_items: int
    strategy: str
    lifted_items: int = 0
    late_revision: int = 0
    failures_in_row: int = 0
    budget_from_seq: int = 0
    throttle_reason: str | None = None
    throttle_value: float | None = None
    throttle_limit: float | None = None
    throttled_at: datetime | None = None
    finalize_asked_by: str | None = None
    reclaimed_at: datetime | None = None

    @property
    def how(self) -> Strategy:
        """What its strategy does."""
        return STRATEGIES[self.strategy]


@dataclass(frozen=True)
class ServingRow:
    gallery_id: int
    generation: int
    model_id: int
    rollout_id: int | None
    valid_from: datetime


@dataclass(frozen=True)
class Claim:
    """A leased batch, the ranks [first_rank, first_rank + n): its fence and generation are handed back at commit and must
    still be the newest. `plan_revision`: the one that gave the batch its rows; they stay while it is leased."""

    rollout_id: int
    first_rank: int
    n: int
    fence: int
    generation: int
    late_revision: int
    attempt: int
    band: int
    error: str | None
    plan_revision: int = 0


@dataclass(frozen=True)
class WaitingBatch:
    """A batch that nobody holds."""

    first_rank: int
    n: int
    plan_revision: int


@dataclass(frozen=True)
class PlanRevisionRow:
    """A revision of a rollout's plan.

    Attributes:
        file: where its inverse plan is, beside the extents.
        measure: what it followed: flips, demand, or both.
        batches, items: how many have other rows, another rank.
        committed_items: of the rollout when it was written.
        automatic: written by the evaluator, not by an operator's word.
    """

    rollout_id: int
    no: int
    file: str
    measure: str
    batches: int
    items: int
    committed_items: int
    automatic: bool
    actor: str
    at: datetime | None = None


@dataclass(frozen=True)
class Committed:
    """What a commit answered: the batch's place in the log, and the places that were superseded meanwhile."""

    seq: int
    superseded: tuple[int, ...]


@dataclass(frozen=True)
class LogEntry:
    """One entry of a gallery's log.

    Attributes:
        kind: batch, deployed, finalized, reset, deleted, traffic.
        first_rank, n, fence, crc, holes, superseded: of batches; `fence` is part of the bytes' address.
        plan_revision: of batches: the one that gave them their rows.
        rows: of deletions.
        at: when it was committed.
    """

    seq: int
    kind: str
    rollout_id: int | None
    first_rank: int = 0
    n: int = 0
    fence: int = 0
    crc: int | None = None
    holes: tuple[int, ...] = ()
    superseded: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    plan_revision: int = 0
    at: datetime | None = None


@dataclass(frozen=True)
class OutboxRow:
    """A wake-up that waits to be rung."""

    id: int
    task: str
    rollout_id: int
    lane: str


@dataclass(frozen=True)
class GateDecisionRow:
    """A gate's newest answer about a query set; `times`: how often it gave it in a row, `seq`: up to which log entry."""

    id: int
    gate: str
    query_set: str
    result: str
    error: bool
    times: int
    seq: int
    dry_run: bool
    reason: str


@dataclass(frozen=True)
class EvaluationRow:
    """Flip counts of one slice of a query set at one place of the log; counts, never rates. `point`: of the drawn curve."""

    seq: int
    items: int
    k: int
    slice: str
    point: bool
    n: int
    both_right: int
    negative_flips: int
    positive_flips: int
    both_wrong: int
    previous_negative_flips: int
    previous_positive_flips: int


@dataclass(frozen=True)
class ChurnRow:
    """The churn of one slice of a query set at one place of the log; see `core.churn.Churn`. `p`: of rank-biased overlap."""

    seq: int
    items: int
    slice: str
    point: bool
    n: int
    shared: tuple[int, ...]
    p: float
