"""Where the bytes go.

estimate      how many a job will need, counted from shapes before anything is loaded
accounting    how many there were, by kind
offload       what layers keep waits in the host's memory (paper, extension: sparsity-sensitive offload)
"""
