"""Settings: flag over environment over file over default, the same name in all three.

The file is `hotrefresh.toml` in the current folder (or the path in HOTREFRESH_CONFIG). Secrets (the passwords inside
URLs) come from environment or file only and are masked wherever settings are shown.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from models.errors import UsageError
from orchestrator.core.shards import BLOCK_ROWS, WHOLE, Shard

DEFAULT_FILE = "hotrefresh.toml"
CHURN_K = 10
"""A page of answers; of rank-biased overlap with p = 0.9 it has 86 % of the weight."""


class Settings(BaseSettings):
    """One resolved configuration. Durations are seconds."""

    model_config = SettingsConfigDict(env_prefix="HOTREFRESH_", extra="forbid", frozen=True)

    # repr=False: a traceback or a log line may show settings, but no password.
    database_url: str | None = Field(
        None, repr=False, description="PostgreSQL URL; unset: an embedded server"
    )
    broker_url: str | None = Field(
        None, repr=False, description="Redis, Valkey or RabbitMQ URL; unset: an embedded server"
    )
    data_dir: Path = Field(Path(".hotrefresh"), description="embedded servers, models and extents live here")
    store_dir: str | None = Field(
        None, description="extents: a folder or a URL such as s3://bucket/prefix; default <data_dir>/extents"
    )
    model_dir: Path | None = Field(None, description="model artifacts; default <data_dir>/models")
    batch_size: int = Field(1024, ge=1, le=65_536, description="items in a batch")
    lease_s: float = Field(30.0, gt=0.5, description="a batch's lease; renewed every third of it")
    heartbeat_s: float = Field(2.0, gt=0.05, description="a worker's heartbeat interval")
    stuck_s: float = Field(
        45.0, gt=0, description="a supervised worker that finishes no batch for this long is replaced"
    )
    sweep_s: float = Field(5.0, gt=0.05, description="seconds between two rounds of the sweeper")
    throttle: list[dict[str, Any]] = Field(
        [],
        description="[[throttle]] tables of the file: what holds a rollout's workers back",
    )
    gate: list[dict[str, Any]] = Field(
        [], description="[[gate]] tables of the file: what pauses a rollout or takes it back"
    )
    api_token: str | None = Field(None, repr=False, description="bearer token of `hotrefresh serve`")
    api_token_file: Path | None = Field(
        None, description="a file of mode 0600 with tokens, one a line: TOKEN, or NAME TOKEN"
    )
    server_url: str | None = Field(
        None, repr=False, description="a running `hotrefresh serve` that `gallery search` asks; unset: none"
    )
    api_requests_at_once: int = Field(
        256, ge=1, le=1000, description="requests that a server answers at a time; 503 beyond"
    )
    api_batch_queries: int = Field(100, ge=1, le=1000, description="queries in one batch of searches")
    api_rate_per_s: float = Field(
        0.0, ge=0, description="requests a second of one token, or of one address; 429 beyond; 0: no limit"
    )
    api_rate_burst: int = Field(20, ge=1, description="of those, so many may come at once")
    encode_batch: int = Field(
        64, ge=1, le=1024, description="queries of different requests encoded together; 1: each on its own"
    )
    encode_wait_ms: float = Field(
        0.0, ge=0, le=1000, description="how long such a batch waits for more queries; 0: not at all"
    )
    index: str = Field(
        "faiss-flat", description="what replicas search with; `hotrefresh serve --help` lists the backends"
    )
    index_url: str | None = Field(
        None,
        repr=False,
        description="server of that backend; unset: the ledger's database (pgvector), a file in data_dir (milvus)",
    )
    index_token: str | None = Field(None, repr=False, description="token of a Milvus cluster")
    index_shards: int = Field(1, ge=1, le=256, description="row ranges searched side by side in one replica")
    index_nprobe: int | None = Field(
        None,
        ge=1,
        description="lists that faiss-ivf and codes-ivf look into; unset: a sixteenth of them, at least 8",
    )
    index_ef: int = Field(
        100, ge=1, le=1000, description="candidates that an HNSW graph keeps while it searches"
    )
    rerank: int = Field(
        0,
        ge=0,
        le=1000,
        description="codes: so many of the best are compared again by stored floats; 0: none",
    )
    index_rebuild_share: float = Field(
        0.3,
        gt=0,
        le=1,
        description="share of rows replaced after which faiss-ivf and codes-ivf make their lists anew",
    )
    shard: str | None = Field(
        None, description="2/3: `serve` holds the second of three parts of each gallery; unset: all of it"
    )
    shard_rows: int = Field(
        BLOCK_ROWS, ge=1, description="rows that are dealt out to shards at a time; the same for all of them"
    )
    merge: list[str] = Field(
        [], repr=False, description="URLs of all shards: `serve` holds no rows and merges their answers"
    )
    worker_queues: list[str] = Field(
        ["control", "cpu", "gpu"],
        description="what a worker does: control (deploy, plan, finalize), cpu (evaluate), gpu (embed)",
    )
    device: str = Field(
        "auto", description="where workers encode and models are trained: auto, cpu, cuda or cuda:N"
    )
    precision: str | None = Field(
        None,
        description="float32, bfloat16 or float16; unset: float32 on a CPU, bfloat16 on a GPU where that is near enough",
    )
    compile_encoder: bool = Field(False, description="torch.compile the encoder's network once a worker")
    decode_threads: int = Field(2, ge=1, le=64, description="threads that read and decode items in a worker")
    worker_idle_s: float = Field(
        60.0, gt=0, description="a worker started by a command leaves after this idle time"
    )
    flip_ks: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        [1],
        min_length=1,
        description="flips are counted at each of these k: right is a relevant item among the k first; 1 is always counted",
    )
    churn_k: int = Field(
        CHURN_K, ge=1, le=100, description="churn is measured on so many first answers of each query"
    )
    churn_p: float = Field(0.9, gt=0, lt=1, description="p of rank-biased overlap: nearer to 1 looks deeper")
    hold_old_system: bool = Field(
        True, description="`serve` holds both systems during a canary, twice the memory; false: it refuses"
    )
    shadow_keep_texts: bool = Field(
        False, description="samples of shadow queries keep the text that was asked; it may be private"
    )
    buffer_size: int = Field(100, ge=10, description="candidates kept for each query by the flip evaluator")

    replica_lag_s: float = Field(
        30.0, gt=0, description="a replica lags when a log entry it has not applied is older than this"
    )
    replica_snapshot_s: float = Field(
        600.0,
        ge=0,
        description="seconds between two snapshots of a served gallery, for a fast restart; 0: none is written or read",
    )
    replica_lag_unready: bool = Field(
        False, description="a replica that lags makes /readyz answer 503 instead of degraded"
    )

    @field_validator("shard")
    @classmethod
    def _is_shard(cls, value: str | None) -> str | None:
        if value is not None:
            Shard.parse(value)
        return value

    @property
    def held(self) -> Shard:
        """The part of each gallery that `serve` holds."""
        return WHOLE if self.shard is None else Shard.parse(self.shard, self.shard_rows)

    @property
    def extents(self) -> str:
        """Where the extents are: an absolute path, or a URL."""
        if self.store_dir is not None and "://" in self.store_dir:
            return self.store_dir
        return str(Path(self.store_dir or self.data_dir / "extents").absolute())

    @property
    def artifacts(self) -> Path:
        """The folder of imported and trained model artifacts, absolute."""
        return (self.model_dir or self.data_dir / "models").absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = config_file()
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file))

    def shown(self) -> dict[str, Any]:
        """The settings with passwords masked, ready to print."""
        shown = self.model_dump(mode="json")
        for name in ("database_url", "broker_url", "index_url", "server_url"):
            shown[name] = masked(shown[name])
        shown["merge"] = [masked(url) for url in shown["merge"]]
        for name in ("api_token", "index_token"):
            if shown[name] is not None:
                shown[name] = "***"
        return shown


def config_file() -> Path:
    """The configuration file that is read, whether or not it exists."""
    return Path(os.environ.get("HOTREFRESH_CONFIG", DEFAULT_FILE))


def load_settings(**flags: Any) -> Settings:
    """Resolve the settings; `flags` are the command's own options, None meaning "not given".

    Raises:
        UsageError: a value that does not fit, or an unknown name in the file.
    """
    named = os.environ.get("HOTREFRESH_CONFIG")
    if named and not Path(named).is_file():
        raise UsageError(
            f"HOTREFRESH_CONFIG names {named!r}, which is no file; create it or unset the variable."
        )
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {masked(repr(e.get('input')))})"
            for e in error.errors()
        ]
        raise UsageError(
            "configuration cannot be used: "
            + "; ".join(lines)
            + f". Look at the flags, HOTREFRESH_* and {config_file()}."
        ) from None
    except ValueError as error:  # the TOML itself cannot be parsed
        raise UsageError(f"{config_file()} is not valid TOML: {error}. Correct the line named.") from None


def masked(url: str | None) -> str | None:
    """A URL, or a text that may hold one, with its passwords replaced by ***: before the host, or after the question mark.

    Up to the last @ before the host: whoever forgot to encode an @ in a password does not publish the rest of it.
    """
    if url is None:
        return None
    hidden = re.sub(r"(://[^:/@\s]*):[^\s'\"]*@", r"\1:***@", url)
    return re.sub(
        r"((?:^|[?&])\w*(?:password|secret|token)\w*=)[^&\s'\"]*", r"\1***", hidden, flags=re.IGNORECASE
    )
