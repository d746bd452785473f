"""ftplan: declarative planner and launcher for fine-tuning language models."""

__version__ = "0.1.0"
