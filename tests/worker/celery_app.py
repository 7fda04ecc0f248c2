"""`celery -A tests.worker.celery_app`: the real Celery process, with the fake trainer; and, if JENGA_TEST_GPUS names
some, with fake GPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.fleet import gpus
from worker import app as production
from worker import devices

production.trainer = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
if names := os.environ.get("JENGA_TEST_GPUS"):
    devices.inventory = lambda held=(): gpus(*names.split(","))
app = production.app
