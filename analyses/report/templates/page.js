"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

  // Whatever has the light ink's colour is drawn in the present theme's.
  const inked = (value, ink) => {
    if (value === data.ink.light) return ink;
    if (Array.isArray(value)) return value.map((one) => inked(one, ink));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, inked(one, ink)]));
    return value;
  };

  const drawFigures = (theme) => {
    for (const [id, figure] of Object.entries(data.figures)) {
      const place = document.getElementById(id);
      const drawn = inked(figure, data.ink[theme]);
      const layout = { ...drawn.layout, template: data.templates[theme], height: Number(place.dataset.height) };
      layout.margin = { t: 44, r: 12, b: 44, l: 52, ...(drawn.layout.margin || {}) };
      Plotly.react(place, drawn.data, layout, {
        responsive: true,
        displaylogo: false,
        modeBarButtons: [["toImage", "resetScale2d"]],
        toImageButtonOptions: { format: "svg", filename: id },
      });
    }
  };

  const setTheme = (theme) => {
    root.dataset.theme = theme;
    root.style.colorScheme = theme;
    drawFigures(theme);
  };

  const drawPatterns = () => {
    for (const [id, one] of Object.entries(data.patterns)) {
      const places = document.getElementById(id).querySelectorAll(".heat");
      one.heads.forEach((head, index) => {
        places[index].id = `${id}-${index}`;
        CircuitsVis.render(places[index].id, CircuitsVis.AttentionPattern, {
          attention: one.patterns[index],
          tokens: one.tokens,
          minValue: -1,
          maxValue: 1,
          positiveColor: head.colour,
          maskUpperTri: one.causal,
          upperTriColor: "#f1f2f4",
        });
      });
    }
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => {
        const descending = header.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        header.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const key = (row) => {
          const cell = row.cells[column];
          return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
        };
        const compare = (a, b) =>
          typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (descending ? -1 : 1));
        body.append(...rows);
      });
    });
  };

  const readable = (prompt) => {
    const tokens = [...prompt.querySelectorAll(".token")];
    const about = prompt.querySelector(".about");
    const list = prompt.querySelector(".tokens");
    let at = 0;
    const show = (index) => {
      tokens[at].classList.remove("here");
      tokens[at].setAttribute("aria-selected", "false");
      at = Math.min(Math.max(index, 0), tokens.length - 1);
      tokens[at].classList.add("here");
      tokens[at].setAttribute("aria-selected", "true");
      about.textContent = tokens[at].title;
    };
    list.addEventListener("mouseover", (event) => {
      const index = tokens.indexOf(event.target);
      if (index >= 0) show(index);
    });
    list.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 };
      if (event.key in moves) {
        event.preventDefault();
        show(moves[event.key]);
      }
    });
    list.addEventListener("focus", () => show(at));
  };

  const followContents = () => {
    const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
    const watcher = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (!entry.isIntersecting) continue;
          for (const link of links.values()) link.removeAttribute("aria-current");
          links.get(entry.target.id)?.setAttribute("aria-current", "true");
        }
      },
      { rootMargin: "-20% 0px -70% 0px" },
    );
    for (const id of links.keys()) {
      const section = document.getElementById(id);
      if (section) watcher.observe(section);
    }
  };

  document.querySelectorAll("details.table table").forEach(sortable);
  document.querySelectorAll(".prompt").forEach(readable);
  document.querySelector(".theme").addEventListener("click", () => {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  });
  prefersDark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
  setTheme(prefersDark.matches ? "dark" : "light");
  drawPatterns();
  followContents();
  root.dataset.ready = "true";
})();
