"""The steps of a training: what is drawn, computed and learned in each, and what has to be kept to go on later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.compat import CompatBatch, CompatMethod, OldModel
from models.encoders import architecture_module
from models.encoders.images import arranged, channels_last, to_float
from models.encoders.normalisation import gates_of
from models.errors import ArtifactError, UsageError
from models.initial import begin_with
from models.parallel import Processes

if TYPE_CHECKING:
    from models.training import Pictures, TrainingOptions

_CALIBRATION_IMAGES = 4096


class Training:
    """One training, step by step. Every process holds all of it and computes its share of the network's passes.

    Args:
        pictures: preprocessed as `options.preprocessing` says.
        method, frozen: the compatible-training method and what it knows of the old model.
        seed: of the order of the pictures and of their augmentation; torch itself is seeded by the caller.
        initial: weights to begin with instead of drawn ones; see `models.initial`.

    Attributes:
        network: in training; moved to the processes' device.
        head: (C, dim) float32, not normalised.
        steps, done: steps in all, and steps done.
    """

    def __init__(
        self,
        pictures: Pictures,
        method: CompatMethod,
        frozen: OldModel,
        options: TrainingOptions,
        seed: int,
        processes: Processes,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._options, self._processes, self._method = options, processes, method
        device = processes.device
        module = architecture_module(options.architecture)
        network = module.build(options.network, options.dim, options.preprocessing)
        if initial is not None:
            begin_with(network, initial)
        self.network = channels_last(network).train()
        head = torch.randn(len(pictures.classes), options.dim) * options.dim**-0.5
        self.head = nn.Parameter(head.to(device))
        self._frozen = OldModel(
            *(part.to(device) for part in (frozen.vectors, frozen.labels, frozen.head, frozen.knows))
        )
        method.prepare(self._frozen, options.dim)
        method.to(device)
        self._wrapped = processes.wrap(self.network)
        self._pixels = torch.from_numpy(pictures.pixels)
        self._together = max(1, 512 // len(pictures.pixels[0])) if pictures.pixels.ndim == 5 else 512
        self._generator = torch.Generator().manual_seed(seed)
        # Augmentation draws where it computes; on a CPU it shares the generator of the order.
        self._looks = self._generator
        if device.type != "cpu":
            self._looks = torch.Generator(device).manual_seed(seed)
        self._order = _Order(len(self._pixels), options.batch_size, self._generator)
        self.steps = max(1, math.ceil(options.epochs * len(self._pixels) / options.batch_size))
        self.done = 0
        gates = list(gates_of(self.network))
        apart = {id(gate) for gate in gates}
        decayed = [each for each in self.network.parameters() if id(each) not in apart]
        groups: list[dict[str, Any]] = [{"params": [*decayed, self.head, *method.parameters()]}]
        if gates:
            groups.append({"params": gates, "weight_decay": 0.0})
        self._optimiser = torch.optim.AdamW(
            groups,
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            foreach=True,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser, lambda step: learning_rate_at(step / self.steps)
        )
        self._kept_outside = _outside_of_buffers(method)

    def step(self) -> Tensor:
        """Learns from one batch; the scalar loss of the whole batch, detached."""
        size, share = self._options.batch_size, self.done / self.steps
        rows = self._order.draw()
        if self.done * size % len(self._pixels) < size:  # the first step of a pass
            self._method.begin_pass(share, self._embed_all)
        new = self._embed(rows)
        rows = rows.to(new.device)
        batch = CompatBatch(
            new=new,
            labels=self._frozen.labels[rows],
            old=self._frozen.vectors[rows],
            old_head=self._frozen.head,
            old_knows=self._frozen.knows,
            new_head=functional.normalize(self.head, dim=1),
            rows=rows,
            progress=share,
        )
        loss = _loss(batch, self._method, self._options)
        self._optimiser.zero_grad(set_to_none=True)
        self._processes.fabric.backward(loss)
        self._processes.average_gradients(iter([self.head, *self._method.parameters()]))
        self._optimiser.step()
        self._schedule.step()
        self.done += 1
        return loss.detach()

    def finish(self) -> None:
        """Batch norms learn their statistics once more, from plain pictures: those are what is embedded later."""
        norms = [
            layer for layer in self.network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        ]
        if not norms:
            return
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over the batches
        sample = torch.randperm(len(self._pixels), generator=self._generator)[:_CALIBRATION_IMAGES]
        with torch.no_grad():
            for at in range(0, len(sample), self._together):
                if len(sample) - at >= 2:
                    self.network(self._plain(sample[at : at + self._together]))

    def state(self) -> dict[str, Tensor]:
        """All that the steps to come depend on, on the CPU, by name.

        Raises UsageError when the method keeps something between steps that is no parameter and no buffer of its.
        """
        odd = _changed(self._kept_outside, _outside_of_buffers(self._method))
        if odd:
            raise UsageError(
                f"method {self._method.name!r} keeps {', '.join(odd)} between steps outside of its buffers, so its training "
                "cannot be resumed: train without --checkpoint."
            )
        found = {
            "steps.done": torch.tensor(self.done),
            "head": self.head,
            "order.pool": self._order.pool,
            "random.order": self._generator.get_state(),
            "random.torch": torch.get_rng_state(),
        }
        if self._looks is not self._generator:
            found["random.looks"] = self._looks.get_state()
            found["random.cuda"] = torch.cuda.get_rng_state(self._processes.device)
        found |= {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        found |= {f"method.{name}": tensor for name, tensor in self._method.state_dict().items()}
        for number, slots in self._optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{number}.{name}": tensor for name, tensor in slots.items()}
        # Clones: safetensors refuses tensors that share memory, as views and tied weights do.
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in found.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on where `state` was taken. Raises ArtifactError when the tensors are not of such a training."""
        try:
            self._restore(tensors)
        except (KeyError, RuntimeError, AttributeError, ValueError) as error:
            raise ArtifactError(
                f"the checkpoint does not fit this training: {error}. Train again without --resume"
            ) from error

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.done = int(tensors["steps.done"])
        with torch.no_grad():
            self.head.copy_(tensors["head"])
        self._order.pool = tensors["order.pool"]
        _restore_module(self.network, _below("network.", tensors))
        _restore_module(self._method, _below("method.", tensors))
        self._restore_optimiser(_below("optimiser.", tensors))
        self._generator.set_state(tensors["random.order"])
        torch.set_rng_state(tensors["random.torch"])
        if self._looks is not self._generator:
            self._looks.set_state(tensors["random.looks"])
            torch.cuda.set_rng_state(tensors["random.cuda"], self._processes.device)

    def _restore_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        # Numbered through all groups, as the optimiser's own state is.
        parameters = [each for group in self._optimiser.param_groups for each in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, saved in tensors.items():
            number, _, slot = name.partition(".")
            like = parameters[int(number)]
            # In the parameter's own memory format: another one may round differently.
            kept = torch.empty_like(like).copy_(saved) if saved.shape == like.shape else saved
            state.setdefault(int(number), {})[slot] = kept
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})
        schedule = self._schedule
        schedule.last_epoch = self.done
        for group, base, rate in zip(
            self._optimiser.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * rate(self.done)

    def _embed(self, rows: Tensor) -> Tensor:
        """(B, dim) float32, L2-normalised, of augmented pictures; carries gradients."""
        own = self._processes.share(len(rows))
        views = self._options.augmentation(self._plain(rows[own]), self._looks, own=own, of=len(rows))
        new = self._wrapped(arranged(views))
        return self._processes.gather(functional.normalize(new, dim=1))

    def _embed_all(self) -> Tensor:
        """(n, dim) float32, L2-normalised, by the network as it stands, as if it were finished."""

        def embed(rows: Tensor) -> Tensor:
            found = [
                functional.normalize(self.network(self._plain(rows[at : at + self._together])), dim=1)
                for at in range(0, len(rows), self._together)
            ]
            return torch.cat(found)

        self.network.eval()
        with torch.no_grad():
            found = self._processes.compute_rows(len(self._pixels), embed)
        self.network.train()
        return found

    def _plain(self, rows: Tensor) -> Tensor:
        return to_float(self._pixels[rows].to(self._processes.device))


def _loss(batch: CompatBatch, method: CompatMethod, options: TrainingOptions) -> Tensor:
    """Classification by the cosine head plus the method's term: a scalar of the whole batch, float32."""
    cosines = with_margin(batch.new @ batch.new_head.T, batch.labels, options.margin)
    logits = cosines / options.temperature
    return functional.cross_entropy(logits, batch.labels) + method.term(batch)


def with_margin(cosines: Tensor, labels: Tensor, margin: float) -> Tensor:
    """(B, C) cosines with `cos(theta_y + margin)` for the true class (ArcFace, equation 3); unchanged without a margin.

    Where theta_y + margin would pass pi, the cosine is lowered by `margin * sin(margin)` instead, so it keeps falling.
    """
    if margin == 0:
        return cosines
    own = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    turned = torch.where(
        own > -math.cos(margin), torch.cos(torch.acos(own) + margin), own - margin * math.sin(margin)
    )
    return cosines.scatter(1, labels[:, None], turned)


def learning_rate_at(share: float) -> float:
    """The factor on the peak learning rate after `share` of the steps: linear warm-up to 10 %, then a half cosine."""
    if share < 0.1:
        return 0.05 + 0.95 * share / 0.1
    return 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))


class _Order:
    """Index tensors of `size`; every picture once before any comes twice. A batch is never a single picture."""

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self._n, self._size, self._generator = n, size, generator
        self.pool = torch.empty(0, dtype=torch.int64)

    def draw(self) -> Tensor:
        while len(self.pool) < self._size:
            self.pool = torch.cat([self.pool, torch.randperm(self._n, generator=self._generator)])
        drawn, self.pool = self.pool[: self._size], self.pool[self._size :]
        return drawn


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def _restore_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    present = module.state_dict()
    if missing := sorted(set(present) - set(tensors)):
        raise KeyError(f"it lacks {missing[0]}")
    for name, saved in tensors.items():
        if name in present and present[name].shape == saved.shape:
            present[name].copy_(saved)
            continue
        # A buffer may have got its size only in training.
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        if leaf not in owner._buffers:
            raise KeyError(f"{name} has another shape or no place")
        setattr(owner, leaf, saved.clone())


def _outside_of_buffers(method: CompatMethod) -> dict[str, Any]:
    """Attributes of a method and its parts that are neither parameter, buffer nor module."""
    internal = set(vars(nn.Module()))
    return {
        f"{name}.{key}".lstrip("."): value
        for name, part in method.named_modules()
        for key, value in vars(part).items()
        if key not in internal
    }


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in after if name not in before or after[name] is not before[name])
