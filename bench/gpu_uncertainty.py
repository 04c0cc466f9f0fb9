"""Row 7 on a device: the uncertainty of N items in float32, and the identical plan from bfloat16 and an exact band."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from bench.result import Row, in_turns, median, quartiles, seconds
from orchestrator.core.banded import BandedPlan, banded_plan
from orchestrator.core.plan import order_rows
from orchestrator.core.uncertainty import chunk_rows, product_with, uncertainty

F32 = npt.NDArray[np.float32]
SEED = 0
BAND_ENDS = (0.1, 0.4, 0.7)
"""Where the priority bands of a plan end, as shares of its rows."""


@dataclass(frozen=True)
class Size:
    """N items, C prototypes, d dimensions, batches of B; `square`: edge of the matrices that give the peak."""

    N: int
    C: int
    d: int
    B: int
    square: int


LARGE = Size(1_048_576, 10_000, 256, 1024, 8192)
SMALL = Size(4096, 300, 64, 256, 512)


def measure(
    device: torch.device, *, repeats: int = 5, small: bool = False, size: Size | None = None
) -> list[Row]:
    """Rows for float32 against the device's own matrix product, three for plans from bfloat16 against float32.

    `size` is what is measured; without one the large, or the small, size of a GPU. Where the statistics can be compiled
    they are; on a CPU scoring as it is by default, without compiling, stands beside.
    """
    size = size or (SMALL if small else LARGE)
    embeddings, prototypes = gallery(size)
    shape = f"N = {size.N:,}, C = {size.C:,}, d = {size.d}, seed {SEED}, on {device}"
    compiled = device.type == "cuda" or can_compile()
    ways = {"compiled": True} if compiled else {}
    if device.type == "cpu":
        ways = {"not compiled": False, **ways}

    def exact(statistic: str) -> npt.NDArray[np.uint32]:
        scores = uncertainty(embeddings, prototypes, device=device, compiled=compiled)
        return order_rows(getattr(scores, statistic))

    for _ in range(2):  # kernels are compiled and chosen
        exact("margin")
    peak = sgemm_peak(device, size, repeats)
    ideal_s = 2 * size.N * size.C * size.d / peak
    taken = in_turns(
        {
            way: partial(uncertainty, embeddings, prototypes, device=device, compiled=fuse)
            for way, fuse in ways.items()
        },
        repeats,
    )
    rows = [
        Row(
            7,
            f"uncertainty of a gallery in float32, {way}, {shape}: median of {repeats}, {quartiles(times, form='.4f')} s",
            median(times),
            "s",
            f"float32 matrix product of the device, {peak / 1e9:,.0f} GFLOP/s: {ideal_s:.4f} s",
            ideal_s / median(times),
            ">= 0.85",
            ideal_s / median(times) >= 0.85,
        )
        for way, times in taken.items()
    ]
    bands = [int(size.N * end) for end in BAND_ENDS]
    all_batches = range(size.B, size.N, size.B)
    for statistic, cuts, name, terms in (
        ("margin", bands, "4 bands", 1),
        ("margin", all_batches, f"batches of {size.B:,}", 3),
        ("entropy", all_batches, f"batches of {size.B:,}", 3),
    ):

        def banded(statistic: str = statistic, cuts: object = cuts, terms: int = terms) -> BandedPlan:
            return banded_plan(
                embeddings,
                prototypes,
                statistic,
                np.asarray(cuts),
                terms=terms,
                device=device,
                compiled=compiled,
            )

        found, expected = banded(), exact(statistic)
        identical = same_segments(found.row_of, expected, np.asarray(cuts))
        pair = in_turns({"float32": lambda: exact(statistic), "banded": banded}, repeats)  # noqa: B023 — called here
        speedup = median(pair["float32"]) / median(pair["banded"])
        rows.append(
            Row(
                7,
                f"plan by {statistic} in {name} from bfloat16 in {terms} term{'s' * (terms > 1)} and an exact band of "
                f"{found.rescored / size.N:.1%}, {'identical' if identical else 'NOT IDENTICAL'}, {shape}: median of {repeats}",
                median(pair["banded"]),
                "s",
                f"the plan from float32, {median(pair['float32']):.4f} s",
                speedup,
                ">= 2.2",
                identical and speedup >= 2.2,
            )
        )
    return rows


def can_compile() -> bool:
    """Whether torch.compile finds a C++ compiler here."""
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


def gallery(size: Size) -> tuple[F32, F32]:
    """Embeddings around prototypes, from sure ones to ones that lie anywhere: (N, d) and (C, d), L2-normalised."""
    rng = np.random.default_rng(SEED)
    prototypes = _unit(rng.standard_normal((size.C, size.d), np.float32))
    embeddings = rng.standard_normal((size.N, size.d), np.float32)
    embeddings *= rng.uniform(0.3, 3.0, (size.N, 1)).astype(np.float32) / np.float32(size.d**0.5)
    embeddings += prototypes[rng.integers(0, size.C, size.N)]
    return _unit(embeddings), prototypes


def _unit(vectors: F32) -> F32:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def same_segments(
    found: npt.NDArray[np.uint32], expected: npt.NDArray[np.uint32], cuts: npt.NDArray[np.int64]
) -> bool:
    """Whether both plans hold the same rows between every two cuts."""
    pairs = zip(np.split(found, cuts), np.split(expected, cuts), strict=True)
    return all(np.array_equal(np.sort(ours), np.sort(theirs)) for ours, theirs in pairs)


def sgemm_peak(device: torch.device, size: Size, repeats: int) -> float:
    """FLOP/s of the fastest float32 product: a large square one, or one with the shape of a chunk's logits."""
    assert torch.get_float32_matmul_precision() == "highest", "TF32 is no float32"
    best = 0.0
    for m, k, n in ((size.square,) * 3, (min(4096, size.N), size.d, size.C)):
        left, right = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
        out = torch.empty(m, n, device=device)

        def product(left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = out) -> None:
            for _ in range(4):
                torch.mm(left, right, out=out)
            synchronise(device)

        product()
        best = max(best, *(4 * 2 * m * k * n / seconds(product) for _ in range(repeats)))
    if (
        device.type == "cpu" and torch.backends.mkldnn.is_available()
    ):  # torch.mm need not be the processor's fastest
        best = max(best, _chunk_peak(size, repeats))
    return best


def _chunk_peak(size: Size, repeats: int) -> float:
    """FLOP/s of the product that scoring uses, with the shape of a chunk's logits."""
    rows = chunk_rows(size.N, size.C)
    chunk = torch.randn(rows, size.d)
    multiply = product_with(torch.randn(size.C, size.d), rows, torch.device("cpu"))

    def product() -> None:
        for _ in range(4):
            multiply(chunk)

    product()
    taken = [seconds(product) for _ in range(4 * repeats)]
    return 4 * 2 * rows * size.d * size.C / min(taken)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
