"""The use cases: plan, estimate, run, search the catalogues. Returns data, prints nothing.

The one place where planner and launcher meet.
"""
