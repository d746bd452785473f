"""What ``scripts/gallery.py`` is made of.

`catalogue` says which pictures there are, `terminal` runs commands in a pseudo-terminal and `drawing` makes SVGs of
what they wrote, `browser` opens Chromium, `reports` and `page` photograph in it, `document` writes and checks
docs/gallery.md.
"""
