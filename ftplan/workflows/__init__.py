"""The use cases: plan, estimate, run. The one place where planner and launcher meet; returns data, prints nothing."""
