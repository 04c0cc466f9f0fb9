"""An item that is asked by: read in whatever modality the system that answers embeds."""

from __future__ import annotations

import threading
from typing import Any

from models.errors import ItemError
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.rows import GalleryRow


class AskedItem:
    """One item of a gallery; its content of each modality is read once. Safe for many threads."""

    def __init__(self, context: Context, gallery: GalleryRow, row: int, uri: str) -> None:
        """`uri`: of the gallery's own modality."""
        self._context = context
        self._gallery = gallery
        self._row = row
        self._uris = {gallery.modality: uri}
        self._contents: dict[str, Any] = {}
        self._lock = threading.Lock()

    def of(self, modality: str) -> Any:
        """The item's content in a modality, as `models.datasets.read_item` reads it.

        Raises:
            ItemError: it has none, or it cannot be read.
        """
        from models.datasets import read_item

        with self._lock:
            if modality not in self._contents:
                self._contents[modality] = read_item(self._uri(modality))
            return self._contents[modality]

    def _uri(self, modality: str) -> str:
        if modality not in self._uris:
            with transaction(self._context.engine) as connection:
                [uri] = gallery_queries.uris_of_rows(connection, self._gallery.id, [self._row], modality)
            if uri is None:
                raise ItemError(
                    "missing", f"the item that is asked by has no {modality}, which the model embeds."
                )
            self._uris[modality] = uri
        return self._uris[modality]


def content_in(content: Any, modality: str) -> Any:
    """What a model of a modality embeds of a query's content. Raises ItemError of an item that has nothing in it."""
    return content.of(modality) if isinstance(content, AskedItem) else content
