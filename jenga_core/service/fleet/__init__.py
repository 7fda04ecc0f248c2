"""The fleet: which hosts and devices there are, who holds them, and who is next."""
