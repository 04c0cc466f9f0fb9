"""Bottleneck adapters on the layers of any torch encoder, by forward hooks: nothing of its library is imported.

For encoders that are not ours, such as those of the library of that name at Hugging Face: hand over their layers, vision or text
(`model.encoder.layer`, `model.transformer.h` …). A layer is a black box here, so there are two placements, with delta as in
bottleneck.py, t the tokens that enter the layer and y those that leave it:

- serial: y + delta(y)
- parallel: y + delta(t), beside the whole layer and not beside its MLP alone

"symmetric" needs the halves of a layer and is for our own vit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from models.errors import UsageError
from models.taca.bottleneck import Bottleneck

PLACEMENTS = ("serial", "parallel")


class HookedAdapters(nn.Module):
    """Adapters of layers that stay their owner's. The owner is frozen; call it as before.

    Args:
        owner: the encoder; its parameters want no gradient afterwards.
        layers: each takes (B, T, width) tokens as its first argument and returns them, alone or first of a tuple.
        width, rank: of each adapter.

    Raises UsageError for another placement, a rank below 1, no layers, or a layer that is none of the owner's.
    """

    def __init__(
        self,
        owner: nn.Module,
        layers: Sequence[nn.Module],
        *,
        width: int,
        rank: int,
        placement: str = "serial",
    ) -> None:
        super().__init__()
        if placement not in PLACEMENTS:
            raise UsageError(
                f"layers of another library cannot have adapters placed {placement!r}: choose {' or '.join(PLACEMENTS)}"
            )
        inside = {id(module) for module in owner.modules()}
        if not layers or any(id(layer) not in inside for layer in layers):
            raise UsageError("name the encoder's own layers, at least one: adapters go behind each of them")
        if rank < 1:
            raise UsageError(f"an adapter's rank is at least 1, not {rank}")
        owner.requires_grad_(False)
        self.placement, self._on = placement, True
        self.bottlenecks = nn.ModuleList(Bottleneck(width, rank) for _ in layers)
        self._hooks = [
            layer.register_forward_hook(self._hook(number), with_kwargs=True)
            for number, layer in enumerate(layers)
        ]

    @contextmanager
    def native(self) -> Iterator[None]:
        """Inside, the encoder answers as it did before; not for several threads at once."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def remove(self) -> None:
        """Take the adapters off the encoder for good."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, number: int) -> Any:
        def add(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], returned: Any) -> Any:
            if not self._on:
                return None
            tokens = returned[0] if isinstance(returned, tuple) else returned
            entered = given[0] if given else next(iter(named.values()))
            added: Tensor = tokens + self.bottlenecks[number](
                tokens if self.placement == "serial" else entered
            )
            return (added, *returned[1:]) if isinstance(returned, tuple) else added

        return add
