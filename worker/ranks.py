"""A job on several devices: the trainer is rank 0 and starts one process more for each further device.

    rank 0    all stages; the only one that speaks, saves and publishes
    others    validate, prepare, then wait for what rank 0 measured and trained, then finetune; nothing after it

Each process sees one device. The others are in the trainer's process group, so they get its signals and its end; when
one of them fails, rank 0 leaves with the same exit code, for alone it would wait for ever.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from jenga_core.finetuning import parallel
from jenga_core.finetuning.checkpoints import STATE_FOLDER
from jenga_core.service.processes import dies_with_this
from worker import resume_state
from worker.protocol import EVENTS_FD_VARIABLE, TrainerSpec
from worker.training_job import TrainingJob

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


def start_others(spec: TrainerSpec, folder: Path) -> Path | None:
    """Rank 0: start the other ranks and keep the first device for this one; return where they meet.

    None when the job has one device. Call it before CUDA is used.
    """
    if spec.gpus == 1:
        return None
    given = [name for name in os.environ.get(DEVICES_VARIABLE, "").split(",") if name]
    devices: Sequence[str] = given or [""] * spec.gpus
    assert len(devices) == spec.gpus, (devices, spec.gpus)
    rendezvous = folder / f".rendezvous-{secrets.token_hex(4)}"
    command = [sys.executable, "-m", "worker.trainer", "--job-dir", str(folder), "--rendezvous", str(rendezvous)]
    events = int(os.environ[EVENTS_FD_VARIABLE])
    for rank in range(1, spec.gpus):
        process = subprocess.Popen(
            [*command, "--rank", str(rank)],
            stdin=subprocess.DEVNULL,
            pass_fds=(events,),
            env={**os.environ, DEVICES_VARIABLE: devices[rank]},
            preexec_fn=dies_with_this(signal.SIGKILL),
        )
        threading.Thread(target=_follow, args=(process,), name=f"rank-{rank}", daemon=True).start()
    os.environ[DEVICES_VARIABLE] = devices[0]
    return rendezvous


def _follow(process: subprocess.Popen[bytes]) -> None:
    """End as the other rank ended, unless it ended well."""
    code = process.wait()
    if code > 0:
        os._exit(code)
    elif code < 0:
        os.kill(os.getpid(), -code if code != -signal.SIGTERM else signal.SIGKILL)


def exchange(job: TrainingJob) -> None:
    """Before training: what rank 0 measured, its thresholds and its predictors, become everybody's."""
    if job.ranks.size == 1:
        return
    shared = job.folder / "shared"
    if job.ranks.rank == 0 and job.resume_from is None:
        shutil.rmtree(shared, ignore_errors=True)
        (shared / STATE_FOLDER).mkdir(parents=True)
        resume_state.save(job, shared / STATE_FOLDER)
    job.ranks.wait_for_all()
    if job.ranks.rank > 0:
        source = job.resume_from or shared
        resume_state.load_calibration(job, source)
        resume_state.load_predictors(job, source)


def part(job: TrainingJob) -> None:
    """After training: rank 0 goes on alone."""
    if job.ranks.size > 1:
        parallel.leave()
