"""`celery -A tests.chaos.celery_app`: the real Celery process, fake GPUs and, unless told otherwise, a fake trainer.

JENGA_CHAOS_GPUS names the GPUs of this worker's host, JENGA_CHAOS_REAL=1 asks for the real trainer on the CPU, and the
file JENGA_CHAOS_CLOCK holds by how many seconds this process's wall clock is wrong.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

from tests.support.fleet import gpus
from worker import app as production
from worker.host import Host

clock = os.environ.get("JENGA_CHAOS_CLOCK")
if clock is not None:
    right = time.time

    def wrong() -> float:
        try:
            return right() + float(Path(clock).read_text())
        except (FileNotFoundError, ValueError):
            return right()

    time.time = wrong

host_name = os.environ["JENGA_CHAOS_HOST"]
platform.node = lambda: host_name  # several hosts on one machine
names = os.environ["JENGA_CHAOS_GPUS"].split(",")
production.host = Host(production.settings, look=lambda held: gpus(*names), beat_seconds=2.0)
if os.environ.get("JENGA_CHAOS_REAL") != "1":
    fake = Path(__file__).parents[1] / "worker" / "fake_trainer.py"
    production.trainer = (sys.executable, str(fake))
app = production.app
