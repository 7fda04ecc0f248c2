"""What is shown of jobs, to people and to Prometheus."""
