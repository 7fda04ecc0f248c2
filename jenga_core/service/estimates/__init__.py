"""What a job would need, before it is made."""
