"""What jobs may name: base models, and predictors that earlier jobs made."""
