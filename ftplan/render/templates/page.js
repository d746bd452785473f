"use strict";
(() => {
  const root = document.documentElement;
  if ("ftplan" in root.dataset) return; // a page around may load this twice
  root.dataset.ftplan = "";
  const save = (name, blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const said = (button, text) => {
    const before = button.textContent;
    button.textContent = text;
    setTimeout(() => { button.textContent = before; }, 1500);
  };

  // A chart that leaves its page takes the colours with it that the page gave it.
  const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-weight", "font-family", "paint-order", "text-anchor", "transform"];
  const alone = (svg) => {
    const copy = svg.cloneNode(true);
    const from = [svg, ...svg.querySelectorAll("*")];
    [copy, ...copy.querySelectorAll("*")].forEach((element, index) => {
      const style = getComputedStyle(from[index]);
      element.setAttribute("style", DRAWN.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
    });
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    paper.setAttribute("width", width);
    paper.setAttribute("height", height);
    paper.setAttribute("style", `fill:${getComputedStyle(root).getPropertyValue("--panel")}`);
    copy.insertBefore(paper, copy.firstChild);
    return { text: new XMLSerializer().serializeToString(copy), width, height };
  };
  const exportChart = (button) => {
    const svg = button.closest("figure").querySelector("svg");
    const name = `ftplan-${svg.dataset.name}`;
    const { text, width, height } = alone(svg);
    if (button.dataset.export === "svg") {
      save(`${name}.svg`, new Blob([text], { type: "image/svg+xml" }));
      return;
    }
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = width * 3;
      canvas.height = height * 3;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(`${name}.png`, blob), "image/png");
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  };
  // Where a file holds characters that nobody can see, the page spells them out, and has it as it is beside that.
  const fileOf = (button) => {
    const shown = button.closest("details").querySelector("pre");
    return shown.dataset.exact ? JSON.parse(shown.dataset.exact) : shown.textContent;
  };
  const copy = async (button) => {
    const text = fileOf(button);
    if (navigator.clipboard) {
      try {
        await navigator.clipboard.writeText(text);
        said(button, "Copied");
        return;
      } catch {
        // Not allowed here: the other way is tried.
      }
    }
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    said(button, document.execCommand("copy") ? "Copied" : "Select it and copy");
    area.remove();
  };
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (!button) return;
    if (button.dataset.export) exportChart(button);
    else if ("copy" in button.dataset) copy(button);
    else if (button.dataset.save) save(button.dataset.save, new Blob([fileOf(button)], { type: "text/plain" }));
    else if (button.dataset.json) save(button.dataset.json, new Blob([document.getElementById("ftplan-json").textContent + "\n"], { type: "application/json" }));
    else if ("themeToggle" in button.dataset) root.dataset.theme = isDark() ? "light" : "dark";
  });
  // Paper is white, whatever the screen was.
  let chosen;
  addEventListener("beforeprint", () => { chosen = root.dataset.theme; if (chosen) root.dataset.theme = "light"; });
  addEventListener("afterprint", () => { if (chosen) root.dataset.theme = chosen; });

  // What a mark stands for, below its chart: for fingers, and for eyes that a tooltip is too short for.
  for (const kind of ["pointerover", "click"]) {
    document.addEventListener(kind, (event) => {
      const mark = event.target.closest?.(".ftplan .chart *");
      const title = mark?.querySelector(":scope > title");
      const told = mark?.closest("figure")?.querySelector(".told");
      if (title && told) told.textContent = title.textContent;
    });
  }
})();
