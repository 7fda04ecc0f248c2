#!/usr/bin/env bash
# The same with curl and jq:  JENGA_API_KEY=... examples/curl.sh train.jsonl
set -euo pipefail
url="${JENGA_BASE_URL:-http://127.0.0.1:8000}/v1"
call() { curl --silent --show-error --fail-with-body --header "Authorization: Bearer $JENGA_API_KEY" "$@"; }

file=$(call "$url/files" --form purpose=fine-tune --form "file=@$1" | jq --raw-output .id)
job=$(call "$url/fine_tuning/jobs" --json "{
  \"model\": \"smollm2-135m\",
  \"training_file\": \"$file\",
  \"jenga\": {\"preset\": \"jenga\", \"keep_fraction\": 0.4, \"context_length_tokens\": 1024, \"max_steps\": 12}
}" | jq --raw-output .id)

until call "$url/fine_tuning/jobs/$job" | jq --exit-status '.status | IN("succeeded", "failed", "cancelled")' >/dev/null; do
  sleep 2
done
call "$url/fine_tuning/jobs/$job/events?limit=100" | jq --raw-output '.data | reverse | .[].message'
call "$url/fine_tuning/jobs/$job" | jq '{status, fine_tuned_model, result_files, error}'
