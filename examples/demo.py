"""The main job, end to end: `make demo`.

Starts Jenga in `.demo/` (API, Celery worker, SQLite, embedded broker), adds SmolLM2-135M, uploads long modules of the
standard library, fine-tunes with the official `openai` client, and checks the adapter with plain peft. The exit code is
0 only if the adapter loads and changes the model's logits.

    KEEP=1 leaves the service up.    DEMO_DIR names another folder than .demo.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from build_dataset import build
from openai import OpenAI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

MODEL = "smollm2-135m"
JENGA_OPTIONS = {
    "preset": "jenga",
    "context_length_tokens": 1024,
    "max_steps": 12,
    "eval_windows": 6,
    "learning_rate": 1e-3,
    "keep_fraction": 0.4,
}
EXAMPLES = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("DEMO_DIR") or EXAMPLES.parent / ".demo").absolute()
ENDED = ("succeeded", "failed", "cancelled")
STOP_SECONDS = 90

console = Console()


def main() -> None:
    """Run the demo; leave through `fail` on any trouble."""
    data_dir = FOLDER / "data"
    data_dir.mkdir(parents=True, exist_ok=True)
    service, address = start(data_dir)
    keep = False
    try:
        say(f"Jenga is up at {address}")
        jenga("models", "add", MODEL, data_dir=data_dir)
        train, heldout = build(FOLDER / "documents")
        client = OpenAI(base_url=f"{address}/v1", api_key=(data_dir / "admin.key").read_text().strip())
        cancel_leftovers(client)
        job = run_job(client, train, heldout)
        adapter = download_adapter(client, job)
        show(client, job)
        change = check_adapter(data_dir / "models" / MODEL, adapter)
        say(f"adapter: {adapter}\n  peft loads it; the largest change of a logit is {change}")
        keep = bool(os.environ.get("KEEP"))
        if keep:
            say(
                f"Jenga stays up at {address}; its key is in {data_dir / 'admin.key'}; stop it with: kill {service.pid}"
            )
    finally:
        if not keep:
            stop(service)


def start(data_dir: Path) -> tuple[subprocess.Popen[str], str]:
    """`jenga up` on a free port; returns once it printed its one line."""
    say("starting Jenga: API, worker, broker, database")
    log = FOLDER / "up.log"
    service = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "up", "--port", "0", "--data-dir", str(data_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
        start_new_session=True,  # with KEEP=1 it outlives this process
    )
    assert service.stdout is not None
    line = service.stdout.readline()
    if not line:
        fail(f"jenga up ended with exit code {service.wait()}:\n{log.read_text()}")
    return service, next(word for word in line.split() if word.startswith("http"))


def cancel_leftovers(client: OpenAI) -> None:
    """Jobs of an interrupted demo would run first: the service keeps its promises over a restart."""
    for job in client.fine_tuning.jobs.list(limit=100):
        if job.status not in ENDED:
            client.fine_tuning.jobs.cancel(job.id)


def run_job(client: OpenAI, train: Path, heldout: Path) -> dict[str, Any]:
    """Upload, create, and follow to the end; the job as the API tells it."""
    files = [client.files.create(file=path, purpose="fine-tune") for path in (train, heldout)]
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=files[0].id,
        validation_file=files[1].id,
        seed=1,
        extra_body={"jenga": JENGA_OPTIONS},
    )
    say(f"job {job.id}: {len(train.read_text().splitlines())} documents, {JENGA_OPTIONS}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    seen: set[str] = set()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("queued", total=JENGA_OPTIONS["max_steps"])
        while True:
            job = client.fine_tuning.jobs.retrieve(job.id)
            extra: dict[str, Any] = job.model_dump()["jenga"]
            progress.update(bar, description=f"{extra['state']}, {extra['stage']}", completed=extra["step"] or 0)
            newest = client.fine_tuning.jobs.list_events(job.id, limit=100).data
            for event in reversed([event for event in newest if event.id not in seen]):
                seen.add(event.id)
                say(f"  {event.message}")
            if job.status in ENDED:
                break
            time.sleep(1)
    if job.status != "succeeded":
        fail(f"the job {job.status}: {job.error.message if job.error else 'no reason given'}")
    return job.model_dump()


def download_adapter(client: OpenAI, job: dict[str, Any]) -> Path:
    """Fetch the archive among the job's result files and unpack it."""
    folder = FOLDER / "adapters" / job["id"]
    folder.mkdir(parents=True, exist_ok=True)
    for file_id in job["result_files"]:
        name = client.files.retrieve(file_id).filename
        client.files.content(file_id).write_to_file(folder / Path(name).name)
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    [config] = folder.rglob("adapter_config.json")
    return config.parent


def show(client: OpenAI, job: dict[str, Any]) -> None:
    """The figures that the job measured."""
    path = f"/fine_tuning/jobs/{job['id']}"
    memory = {row["phase"]: row for row in client.get(f"{path}/memory", cast_to=dict[str, Any])["data"]}
    selection = client.get(f"{path}/selection", cast_to=dict[str, Any])["data"][-1]
    report = job["jenga"]["report"]
    ours, dense = (memory[phase]["activation_bytes"] for phase in ("finetune", "dense_reference"))
    before, after = (report[f"held_out_{when}"]["loss"] for when in ("before", "after"))

    table = Table("measured", "value", title=job["fine_tuned_model"], title_justify="left")
    table.add_row("held-out loss, before and after", f"{before:.4f} -> {after:.4f} nats per token")
    table.add_row("activations saved for backward", f"{ours / 2**20:,.0f} MiB")
    table.add_row("the same of dense LoRA, same process", f"{dense / 2**20:,.0f} MiB ({ours / dense:.0%} of it)")
    for first, last, fraction in runs(selection["kept_fraction"]):
        table.add_row(f"tokens involved in layers {first} to {last}", f"{fraction:.0%}")
    policy, entry = job["jenga"]["config"]["selection"], report["entry_layer"]
    table.add_row(f"the others, below layer {entry}", policy["below_entry"].replace("_", "-"))
    table.add_row(f"the others, from layer {entry} on", policy["unselected"].replace("_", "-"))
    table.add_row("scores", str(report["score"]))
    console.print(table)


def runs(fractions: list[float]) -> list[tuple[int, int, float]]:
    """Neighbouring layers with the same fraction as one line: (first, last, fraction)."""
    lines: list[tuple[int, int, float]] = []
    for layer, fraction in enumerate(fractions):
        if lines and lines[-1][2] == fraction:
            lines[-1] = (lines[-1][0], layer, fraction)
        else:
            lines.append((layer, layer, fraction))
    return lines


def check_adapter(base: Path, adapter: Path) -> str:
    """In a fresh process that knows nothing of Jenga; returns what it printed."""
    script = str(EXAMPLES / "check_adapter.py")
    done = subprocess.run([sys.executable, script, str(base), str(adapter)], capture_output=True, text=True)
    if done.returncode:
        fail(f"the adapter in {adapter} did not pass (exit code {done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def jenga(*arguments: str, data_dir: Path) -> None:
    """Run a subcommand of `jenga`."""
    say(f"jenga {' '.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "cli.main", *arguments, "--data-dir", str(data_dir)])
    if done.returncode:
        fail(f"jenga {' '.join(arguments)} ended with exit code {done.returncode}")


def stop(service: subprocess.Popen[str]) -> None:
    """SIGTERM stops everything that `jenga up` started."""
    service.send_signal(signal.SIGTERM)
    service.wait(STOP_SECONDS)


def say(text: str) -> None:
    """One step of the demo."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def fail(reason: str) -> NoReturn:
    """Say why, and end with exit code 1."""
    console.print(f"demo failed: {reason}", markup=False, highlight=False, soft_wrap=True, style="red")
    sys.exit(1)


if __name__ == "__main__":
    main()
