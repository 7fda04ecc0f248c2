"""Teams and their keys, and what they may use."""
