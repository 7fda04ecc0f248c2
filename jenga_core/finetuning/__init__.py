"""From a base model and a training file to an adapter: data, adapters, the training run, evaluation."""
