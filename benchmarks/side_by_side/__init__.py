"""ftplan's engine and LLaMA-Factory, one after the other on the same card: tokens per second of the same training."""
