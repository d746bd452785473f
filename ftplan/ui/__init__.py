"""The local page: plan by sliders, check files, launch and watch runs. The one package that knows Gradio.

`asking` turns what the controls hold into a request, `controls` says what they are; `planning`, `comparing`, `checking`
and `running` are the tabs; `serving` puts them on an address behind `guard`.
"""

from __future__ import annotations
