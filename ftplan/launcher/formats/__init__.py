"""The configuration files of training frameworks, read and written: a module for each, over shared readers.

``sources.opened`` goes from what a user gives to a framework's settings; ``Format.parse`` from these to fields of a
`RunConfig`; ``rendering.rendered`` back to files, which are read again before they are given out; ``patching.patch``
from one configuration to another in the words of somebody's own files.
"""
