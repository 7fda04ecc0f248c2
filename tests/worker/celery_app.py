"""`celery -A tests.worker.celery_app`: the real Celery process, with the fake trainer."""

from __future__ import annotations

import sys
from pathlib import Path

from worker import app as production

production.trainer = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
app = production.app
