"""What must be true before a run starts: facts are observed (`machine`, `installed`, `environment`) and then judged.

Judging is pure: `checks` maps `Facts` and `Needs` to findings, each with what to do about it. Nothing here imports
torch; what only torch knows is asked of a process of its own (`ftplan.launcher.probe.environment`).
"""
