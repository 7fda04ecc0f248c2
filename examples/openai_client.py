"""Fine-tune with OpenAI's own client; only the base URL and the key differ.

    JENGA_API_KEY=... python examples/openai_client.py train.jsonl heldout.jsonl

JENGA_BASE_URL says where the service is, http://127.0.0.1:8000 if it is not set.
"""

import os
import sys
import time
from pathlib import Path

from openai import OpenAI

if len(sys.argv) != 3 or "JENGA_API_KEY" not in os.environ:
    sys.exit(__doc__)
client = OpenAI(
    base_url=os.environ.get("JENGA_BASE_URL", "http://127.0.0.1:8000") + "/v1", api_key=os.environ["JENGA_API_KEY"]
)
train, heldout = [client.files.create(file=Path(path), purpose="fine-tune") for path in sys.argv[1:]]
options = {"preset": "jenga", "keep_fraction": 0.4, "context_length_tokens": 1024, "max_steps": 12, "eval_windows": 6}
job = client.fine_tuning.jobs.create(
    model="smollm2-135m", training_file=train.id, validation_file=heldout.id, extra_body={"jenga": options}
)
seen = set()
while True:
    job = client.fine_tuning.jobs.retrieve(job.id)  # first: once it has ended, all its events are there
    for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
        if event.id not in seen:
            print(event.message, flush=True)
        seen.add(event.id)
    if job.status in ("succeeded", "failed", "cancelled"):
        break
    time.sleep(2)
for file_id in job.result_files:
    client.files.content(file_id).write_to_file(client.files.retrieve(file_id).filename)
print(job.status, job.fine_tuned_model or job.error)
