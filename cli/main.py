"""`jenga`: start the service, add base models, submit and follow jobs.

    jenga up                                      the whole service, in the foreground
    jenga models add smollm2-135m                 a base model that jobs may name
    jenga submit train.jsonl --model smollm2-135m --option keep_fraction=0.4
    jenga watch ftjob-...

`up`, `migrate` and `models add` act on this machine; everything else is plain HTTP, as any client could speak it.
Nothing here imports torch: what needs it is started as a subprocess.
"""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from cli import jobs, models, up
from jenga_core.errors import JengaError


class _Group(TyperGroup):
    """Expected errors end as one readable line on stderr and exit code 1; anything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except JengaError as error:
            Console(stderr=True, soft_wrap=True, highlight=False).print("Error: " + error.message, markup=False)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group,
    help="Long-context fine-tuning as a service, on contextual token sparsity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("migrate")(up.migrate)
app.add_typer(models.app, name="models")
app.command("submit")(jobs.submit)
app.command("watch")(jobs.watch)
app.command("list")(jobs.list_jobs)
app.command("cancel")(jobs.cancel)

if __name__ == "__main__":
    app()
