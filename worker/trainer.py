"""The trainer: one job, one process. `python -m worker.trainer --job-dir DIR`, started by the supervisor.

It reads `DIR/spec.json`, runs the stages, and tells the supervisor what happens through the pipe whose number is in
JENGA_EVENTS_FD. It knows no database. SIGTERM asks it to save and leave at the next step boundary, SIGUSR1 to finish
with what is trained; its exit code says how it ended (worker/protocol.py).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import datasets
import torch
import transformers

from jenga_core.errors import JengaError
from jenga_core.finetuning import parallel
from jenga_core.finetuning.pretrained import training_device
from jenga_core.service.jobs.state import JobStage
from worker import ranks, watchdog
from worker.protocol import (
    EVENTS_FD_VARIABLE,
    EXIT_OK,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    FINISH_SIGNAL,
    ErrorMessage,
    StageMessage,
    TrainerSpec,
)
from worker.stages import calibrate, evaluate, finetune, prepare, publish, train_predictors, validate
from worker.training_job import Reporter, Stopped, TrainingJob

STAGES: Mapping[JobStage, Callable[[TrainingJob], None]] = {
    JobStage.VALIDATE: validate.run,
    JobStage.PREPARE: prepare.run,
    JobStage.CALIBRATE: calibrate.run,
    JobStage.TRAIN_PREDICTORS: train_predictors.run,
    JobStage.FINETUNE: finetune.run,
    JobStage.EVALUATE: evaluate.run,
    JobStage.PUBLISH: publish.run,
}
"""All of JobStage, in its order."""

OF_EVERY_RANK = (JobStage.VALIDATE, JobStage.PREPARE, JobStage.FINETUNE)
"""Of a job on several devices; the others are rank 0's. Only rank 0 leaves when asked, and the others end with it."""


def main() -> int:
    """Run the job in --job-dir; return the process's exit code."""
    parser = argparse.ArgumentParser(description="Run one fine-tuning job (started by the Jenga worker).")
    parser.add_argument("--job-dir", type=Path, required=True, help="folder that holds spec.json")
    parser.add_argument("--rank", type=int, default=0, help="of a job on several devices (worker/ranks.py)")
    parser.add_argument("--rendezvous", type=Path, help="file at which its ranks meet")
    arguments = parser.parse_args()
    folder, rank = arguments.job_dir, arguments.rank
    spec = TrainerSpec.model_validate_json((folder / "spec.json").read_text())
    reporter = Reporter(int(os.environ[EVENTS_FD_VARIABLE]), quiet=rank > 0)
    if rank == 0:
        watchdog.watch()
        arguments.rendezvous = ranks.start_others(spec, folder)
    job = TrainingJob(spec=spec, folder=folder, reporter=reporter, device=training_device())

    def leave(_signal: int, _frame: FrameType | None) -> None:
        job.stop_requested = True

    def finish(_signal: int, _frame: FrameType | None) -> None:
        job.finish_requested = True

    signal.signal(signal.SIGTERM, leave)
    signal.signal(FINISH_SIGNAL, finish)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [FINISH_SIGNAL])
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if arguments.rendezvous is not None:
        job.ranks = parallel.join(rank, spec.gpus, arguments.rendezvous, job.device)
    return run(job)


def run(job: TrainingJob) -> int:
    """The stages in order; every way to end becomes a message and an exit code."""
    try:
        for stage, work in STAGES.items():
            if job.ranks.rank == 0:
                job.leave_if_asked()
            elif stage not in OF_EVERY_RANK:
                continue
            job.reporter.send(StageMessage(stage=stage))
            work(job)
    except Stopped:
        return EXIT_STOPPED
    except JengaError as error:
        job.reporter.send(ErrorMessage(code=error.code, message=error.message, param=error.param))
        return EXIT_USER_ERROR
    except (torch.OutOfMemoryError, MemoryError) as error:
        traceback.print_exc()
        of_the_gpu = isinstance(error, torch.OutOfMemoryError) and job.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if of_the_gpu else None
        job.reporter.send(ErrorMessage(code="out_of_memory", message=_out_of_memory(job, error), peak_bytes=peak))
        return EXIT_OUT_OF_MEMORY
    except Exception as error:  # noqa: BLE001 - the boundary of the process: whatever it is, it must be told
        traceback.print_exc()
        job.reporter.send(ErrorMessage(code="training_failed", message=f"{type(error).__name__}: {error}"))
        return EXIT_USER_ERROR
    return EXIT_OK


def _out_of_memory(job: TrainingJob, error: BaseException) -> str:
    config = job.spec.config
    where = job.device if isinstance(error, torch.OutOfMemoryError) else "the host"
    return (
        f"out of memory on {where} with context_length_tokens {config.context_length_tokens} and keep_fraction "
        f"{config.selection.keep_fraction}; a shorter context, a smaller keep_fraction or batch_size 1 needs less: "
        f"{error}"
    )


if __name__ == "__main__":
    sys.exit(main())
