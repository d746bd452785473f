"""Runs whose loop is LLaMA-Factory's: started from an environment of its own, followed and recorded like ours."""
