"""From a base model and a training file to an adapter.

base_models, pretrained     models from files; loaded for training, longer contexts included
data                        rows of a file to sequences and batches
adapters                    LoRA, by peft
thresholds                  Algorithm 1 on a model (paper, technique 1)
predictors                  predictors of a model's scores, trained on it (technique 2)
trainer                     the run: transformers' Trainer, with epochs, checkpoints and a watcher
captured_steps              a step as one CUDA graph; parallel: several devices
callback                    epochs for a Trainer of one's own
evaluation                  held-out loss of the dense model
dense_reference             what the same step takes when it is dense
checkpoints, machine        states on disk that are whole or absent; what this host can do
"""
