"""Jobs: `spec` makes one, `lifecycle` alone moves its state, `events` tells what happened, `repository` reads."""
