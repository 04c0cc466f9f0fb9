"""`hotrefresh model adapt-encoder`: a new encoder that answers in an old model's space."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.model import app, registered
from cli.options import SOURCE_HELP, Seed, Split
from cli.output import Format, Output
from cli.progress import progress
from cli.session import open_ledger, say


@app.command(
    "adapt-encoder", epilog="Example: hotrefresh model adapt-encoder both --new big --old old --data photos/"
)
def adapt_encoder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The adapted model's name.")],
    new: Annotated[str, typer.Option(help="The encoder that gets adapters: a vit. It stays frozen.")],
    old: Annotated[str, typer.Option(help="The model whose space it shall emit.")],
    data: Annotated[str, typer.Option(metavar="SOURCE", help=f"Pictures to train on. {SOURCE_HELP}")],
    split: Split = None,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE",
            help="A registered text tower of OLD: the adapted encoder is also trained to meet its texts, the pictures' labels.",
        ),
    ] = None,
    placement: Annotated[
        str, typer.Option(help="serial, parallel, symmetric, or none: a linear map behind the encoder alone.")
    ] = "parallel",
    rank: Annotated[
        int | None, typer.Option(min=0, help="Of each adapter (default 16; 0 with --placement none).")
    ] = None,
    map_hidden: Annotated[
        int, typer.Option(min=0, help="Hidden units of an MLP beside the linear map; 0: none.")
    ] = 0,
    contrast: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the texts (default 1 with --texts, else 0).")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=1e-4, help="Of that contrast (default 0.07).")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="Passes over the pictures (default 5).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures a step (default 128).")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-7, help="At its peak (default 0.002).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all).")] = None,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Train adapters inside a frozen encoder, so that it emits an older model's space, and register the result.

    What was trained on OLD's embeddings (hotrefresh downstream list) can then stay as it is. An interrupted training begins anew.
    """
    from orchestrator.service.adapting import AdaptRequest, adapt

    request = AdaptRequest(
        name=name,
        new=new,
        old=old,
        source=data,
        split=split,
        texts=texts,
        placement=placement,
        rank=rank,
        map_hidden=map_hidden,
        contrast=contrast,
        temperature=temperature,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        threads=threads,
    )
    with open_ledger() as context:
        with progress(f"adapting {new}", "steps") as update:
            row = adapt(context, request, update)
        if output is Format.TABLE:
            say(
                f"{row.name} is made to emit the {row.dim} dimensions of {old}; a certificate measures whether it does"
            )
        registered(context, row, output)
