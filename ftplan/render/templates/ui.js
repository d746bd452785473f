
// The page around the pieces is Gradio's: they follow its light or dark, and keep their folds open when they are renewed.
(() => {
  const root = document.documentElement;
  if ("ftplanUi" in root.dataset) return;
  root.dataset.ftplanUi = "";
  const follow = () => { root.dataset.theme = document.body.classList.contains("dark") ? "dark" : "light"; };
  const named = (details) => `${details.closest("[id]")?.id}|${details.querySelector("summary")?.textContent}`;
  const open = new Map();
  document.addEventListener("toggle", (event) => {
    if (event.target.matches?.(".ftplan details")) open.set(named(event.target), event.target.open);
  }, true);
  const renewed = () => {
    for (const details of document.querySelectorAll(".ftplan details")) {
      const was = open.get(named(details));
      if (was !== undefined && details.open !== was) details.open = was;
    }
  };
  // The verdict is said to those who cannot see it change; the whole answer would be too much.
  const said = document.createElement("div");
  said.setAttribute("role", "status");
  said.className = "ftplan-said";
  const say = () => {
    const verdict = document.querySelector("#plan-answer .verdict");
    if (!verdict || document.querySelector("#plan-answer .draft")) return;
    if (said.textContent !== verdict.textContent) said.textContent = verdict.textContent;
  };
  const begin = () => {
    follow();
    document.body.append(said);
    new MutationObserver(say).observe(document.body, { childList: true, subtree: true });
    new MutationObserver(follow).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    new MutationObserver(renewed).observe(document.body, { childList: true, subtree: true });
  };
  if (document.body) begin();
  else document.addEventListener("DOMContentLoaded", begin);
})();
