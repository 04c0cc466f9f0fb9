"""The Python client of `hotrefresh serve`; it needs httpx and nothing of the engine.

>>> with Client("http://127.0.0.1:8080", token=token) as client:
...     answer = client.search("photos", image="query.jpg", k=5, where={"label": "bicycle"})
...     [(hit.key, hit.score, hit.model) for hit in answer.hits]
"""

from orchestrator.client.answers import Answer, Gallery, Hit, Rollout
from orchestrator.client.client import Client, RefusedError
from orchestrator.errors import UnreachableError

__all__ = ["Answer", "Client", "Gallery", "Hit", "RefusedError", "Rollout", "UnreachableError"]
