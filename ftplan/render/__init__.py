"""The only place that turns numbers into text for people. Data goes to stdout, progress and hints to stderr.

Import the module that is needed (`console`, `estimates`, `plans`, `runs`, …): together they double the start-up time.
"""
