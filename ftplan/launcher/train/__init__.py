"""The training process: the only part of the launcher that imports torch. Run under torchrun, with a job.json."""
