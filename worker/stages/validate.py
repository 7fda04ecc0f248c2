"""Is this job possible at all? Before anything large is loaded: files, rows, architecture, context length, adapter; and
which checkpoint it goes on from."""

from __future__ import annotations

from transformers import AutoConfig

from jenga_core.finetuning.checkpoints import newest_whole
from jenga_core.finetuning.pretrained import load_tokenizer, stretch_positions
from jenga_core.patching.architectures import architecture_of
from jenga_core.training_rows import read_rows
from worker.training_job import TrainingJob


def run(job: TrainingJob) -> None:
    """Leaves the tokenizer and resume_from. Raises DataError, ConfigError or UnsupportedModelError."""
    spec = job.spec
    model_config = AutoConfig.from_pretrained(spec.model_folder, local_files_only=True, trust_remote_code=False)
    architecture_of(model_config.model_type)
    stretch_positions(model_config, spec.config)
    for path in filter(None, (spec.training_path, spec.validation_path)):
        with path.open("rb") as lines:
            for _ in read_rows(lines):
                pass
    job.tokenizer = load_tokenizer(spec.model_folder)
    job.resume_from, problems = newest_whole(spec.checkpoints)
    for problem in problems:
        job.warn(f"A checkpoint is not used: {problem}")
