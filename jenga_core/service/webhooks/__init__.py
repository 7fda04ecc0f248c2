"""Webhooks: an outbox in the transaction of the change, and who delivers it."""
