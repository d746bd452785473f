"""What a browser shows, measured in the page: colours, contrast, text that is cut or overlaps."""

from __future__ import annotations

from typing import Any, Final

CONTRAST: Final = """
(element) => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const draw = canvas.getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    draw.fillStyle = "white";
    draw.fillRect(0, 0, 1, 1);
    for (const colour of colours) { draw.fillStyle = colour; draw.fillRect(0, 0, 1, 1); }
    return [...draw.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const linear = (each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = [];
  for (let each = element; each; each = each.parentElement) behind.unshift(getComputedStyle(each).backgroundColor);
  const style = getComputedStyle(element);
  const ink = element instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [light(over(behind)), light(over([...behind, ink]))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
"""
"""The contrast ratio of an element's text to what is behind it (WCAG 2)."""

CUT: Final = """
() => [...document.querySelectorAll("svg.chart")].flatMap((svg) => {
  const room = svg.getBoundingClientRect();
  if (!room.width) return [];
  const texts = [...svg.querySelectorAll("text")].filter((each) => each.textContent);
  const boxes = texts.map((each) => each.getBoundingClientRect());
  const cut = texts.filter((_, at) => boxes[at].left < room.left - 1 || boxes[at].right > room.right + 1
    || boxes[at].top < room.top - 1 || boxes[at].bottom > room.bottom + 1).map((each) => `cut: ${each.textContent}`);
  const over = texts.flatMap((one, i) => texts.slice(i + 1).filter((_, k) => {
    const [a, b] = [boxes[i], boxes[i + 1 + k]];
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    return Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && high > 4;
  }).map((other) => `${svg.dataset.name}: ${one.textContent} over ${other.textContent}`));
  return [...cut, ...over];
})
"""
"""Texts of charts that do not end within their chart, or lie on one another."""

TEXTS: Final = (
    "h1, h2, h3, p, li, dt, dd, th, td, small, figcaption, summary, button, code, span, output, footer, svg text"
)


def contrast(element: Any) -> float:
    """Of an element's text to what is behind it, from 1 to 21."""
    return float(element.evaluate(CONTRAST))


def poor(page: Any, least: float = 4.5) -> list[str]:
    """Texts that are seen and stand out too little."""
    return list(
        page.evaluate(
            f"""([texts, least]) => {{
              const contrast = {CONTRAST};
              const own = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
              return [...document.querySelectorAll(texts)].filter((each) => own(each) && each.getClientRects().length)
                .map((each) => [each.textContent.slice(0, 40), contrast(each)])
                .filter(([, ratio]) => ratio < least).map(([text, ratio]) => `${{ratio.toFixed(2)}} ${{text}}`);
            }}""",
            [TEXTS, least],
        )
    )


def cut_or_overlapping(page: Any) -> list[str]:
    """Texts of charts that nobody can read."""
    return list(page.evaluate(CUT))


def width_beyond(page: Any) -> int:
    """By how many pixels the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
