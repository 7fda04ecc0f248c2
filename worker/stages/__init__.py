"""The stages of a job, one file each, run in the order of JobStage by worker/trainer.py."""
