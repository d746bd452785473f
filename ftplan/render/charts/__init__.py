"""Charts as SVG text, for the report page and the local page.

Drawn by hand rather than by a plotting library: a chart is a few rectangles, weighs kilobytes instead of megabytes,
takes its colours from the page (light, dark, print), and carries the exact figure of every mark (``data-bytes`` and
the like).
"""

from __future__ import annotations
