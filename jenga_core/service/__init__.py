"""The service half: what api, worker and cli share. A row in the database is the truth; torch is never loaded here.

db           tables and sessions
jobs         a job's state, its events, and what makes one
fleet        hosts, devices, who holds them, who is next
files        uploads and files, checked row by row
models       base models and predictors by name
estimates    what a job would need, before it is made
metrics      what is shown beside a job
accounts     teams, keys, quotas, limits
webhooks     what receivers are told, at least once
"""
