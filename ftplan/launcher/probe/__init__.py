"""What ``ftplan calibrate`` runs in processes of its own, with nothing but torch and the standard library.

``python -m ftplan.launcher.probe`` measures by itself and prints a JSON line for each part; under torchrun it measures
what a group of devices has in common.
"""
