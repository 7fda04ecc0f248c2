"""Fine-tune with OpenAI's own client; only the base URL and the key differ.

JENGA_API_KEY=... python examples/openai_client.py train.jsonl heldout.jsonl
"""

import os
import sys
import time
from pathlib import Path

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("JENGA_BASE_URL", "http://127.0.0.1:8000") + "/v1", api_key=os.environ["JENGA_API_KEY"]
)
train, heldout = [client.files.create(file=Path(path), purpose="fine-tune") for path in sys.argv[1:3]]
job = client.fine_tuning.jobs.create(
    model="smollm2-135m",
    training_file=train.id,
    validation_file=heldout.id,
    extra_body={"jenga": {"preset": "jenga", "keep_fraction": 0.4, "context_length_tokens": 1024, "max_steps": 12}},
)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(2)
    job = client.fine_tuning.jobs.retrieve(job.id)
for event in reversed(list(client.fine_tuning.jobs.list_events(job.id))):
    print(event.message)
for file_id in job.result_files:
    client.files.content(file_id).write_to_file(client.files.retrieve(file_id).filename)
print(job.status, job.fine_tuned_model or job.error)
