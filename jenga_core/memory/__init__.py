"""Where the bytes go.

estimate      how many a job will need, counted from a model_shape before anything is loaded
fitting       what would fit a device
accounting    how many there were, by kind
offload       what layers keep waits in the host's memory (paper, extension: sparsity-sensitive offload)
"""
