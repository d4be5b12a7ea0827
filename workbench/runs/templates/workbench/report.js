"use strict";
// Folds the code, marks the section that is read, and draws the figures over their pictures.
(() => {
  const button = document.querySelector("[data-fold]");
  const codes = document.querySelectorAll("details.code");
  if (button && codes.length) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-pressed") !== "true";
      for (const code of codes) code.open = open;
      button.setAttribute("aria-pressed", String(open));
      button.textContent = open ? "Hide code" : "Show code";
    });
  }

  const links = new Map();
  for (const link of document.querySelectorAll(".contents a")) {
    const target = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    if (target) links.set(target, link);
  }
  const mark = () => {
    let here = null;
    for (const target of links.keys()) {
      if (target.getBoundingClientRect().top < 140) here = target;
    }
    for (const [target, link] of links) link.classList.toggle("here", target === here);
  };
  document.addEventListener("scroll", mark, { passive: true });
  mark();

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colours = () => (dark.matches
    ? { ink: "#e4e8ee", grid: "#2d3640", line: "#59636e" }
    : { ink: "#1b2129", grid: "#e6e8eb", line: "#9aa2ab" });

  // The palette's dark colours, lighter on dark paper.
  const lighter = {
    "#0072B2": "#4aa3e0", "#D55E00": "#f0802f", "#009E73": "#2cc295", "#5B5B5B": "#a8b0ba",
    "#A6761D": "#d3a04a",
  };
  const shaded = (text) => (dark.matches
    ? text.replace(/#[0-9A-F]{6}/g, (colour) => lighter[colour] ?? colour) : text);

  const dressed = (layout) => {
    const { ink, grid, line } = colours();
    const axis = (given) => ({ ...given, gridcolor: grid, linecolor: line, zerolinecolor: line });
    const changed = {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { ...layout.font, color: ink },
      hoverlabel: { font: { family: layout.font?.family } },
      autosize: true,
    };
    delete changed.width;
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) changed[name] = axis(layout[name]);
    }
    return changed;
  };

  const unpack = async (packed) => {
    const bytes = Uint8Array.from(atob(packed.trim()), (sign) => sign.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(plain).text();
  };

  const draw = async (figure) => {
    const { data, layout } = JSON.parse(shaded(figure.querySelector("script").textContent));
    const canvas = figure.querySelector(".canvas");
    figure.classList.add("live");
    try {
      await window.Plotly.react(canvas, data, dressed(layout), {
        responsive: true, displaylogo: false, plotlyServerURL: "",
        modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
      });
    } catch (problem) {
      figure.classList.remove("live"); // the picture stays
      console.warn("figure not drawn:", problem);
    }
  };

  const start = async () => {
    const packed = document.getElementById("plotly");
    const figures = document.querySelectorAll("figure.plot");
    if (!packed || !figures.length || typeof DecompressionStream === "undefined") return;
    const script = document.createElement("script");
    script.textContent = await unpack(packed.textContent);
    document.head.append(script);
    if (!window.Plotly) return;
    for (const figure of figures) {
      await draw(figure);
      await new Promise((ready) => setTimeout(ready));
    }
    dark.addEventListener("change", () => figures.forEach(draw));
    document.documentElement.dataset.drawn = "true";
  };
  start().catch((problem) => console.warn("figures stay pictures:", problem));
})();
