#!/usr/bin/env bash
# The same with curl and jq:  JENGA_API_KEY=... examples/curl.sh train.jsonl heldout.jsonl
# JENGA_BASE_URL says where the service is, http://127.0.0.1:8000 if it is not set.
set -euo pipefail
[ $# = 2 ] && [ -n "${JENGA_API_KEY:-}" ] || { sed -n 2,3p "$0" >&2; exit 2; }
url="${JENGA_BASE_URL:-http://127.0.0.1:8000}/v1"
call() { curl --silent --show-error --fail-with-body --header "Authorization: Bearer $JENGA_API_KEY" "$@"; }
upload() { call "$url/files" --form purpose=fine-tune --form "file=@$1" | jq --raw-output .id; }

train=$(upload "$1")
heldout=$(upload "$2")
job=$(call "$url/fine_tuning/jobs" --json "{
  \"model\": \"smollm2-135m\",
  \"training_file\": \"$train\",
  \"validation_file\": \"$heldout\",
  \"jenga\": {\"preset\": \"jenga\", \"keep_fraction\": 0.4, \"context_length_tokens\": 1024, \"max_steps\": 12,
    \"eval_windows\": 6}
}" | jq --raw-output .id)

until call "$url/fine_tuning/jobs/$job" | jq --exit-status '.status | IN("succeeded", "failed", "cancelled")' >/dev/null; do
  sleep 2
done
call "$url/fine_tuning/jobs/$job/events?limit=100" | jq --raw-output '.data | reverse | .[].message'
call "$url/fine_tuning/jobs/$job" | jq '{status, fine_tuned_model, result_files, error}'
