"use strict";
(() => {
  const all = (where, what) => [...where.querySelectorAll(what)];
  const said = document.getElementById("said");

  const value = (row, place, text) => {
    const cell = row.cells[place];
    const shown = (cell.querySelector("summary") || cell).textContent.trim();
    if (text || cell.tagName === "TH") return shown;
    return parseFloat(shown.replace(/,/g, ""));
  };

  const compare = (a, b, sign) => {
    if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };

  const sort = (table, head) => {
    const other = { ascending: "descending", descending: "ascending" };
    const order = other[head.getAttribute("aria-sort")] || head.dataset.first;
    const place = head.cellIndex;
    const sign = order === "ascending" ? 1 : -1;
    for (const one of all(table, "thead th")) one.setAttribute("aria-sort", one === head ? order : "none");
    for (const body of table.tBodies) {
      const rows = [...body.rows].map((row) => [value(row, place, "text" in head.dataset), row]);
      rows.sort((a, b) => compare(a[0], b[0], sign));
      body.append(...rows.map((pair) => pair[1]));
    }
    said.textContent = `Sorted by ${all(head, "span").map((one) => one.textContent).join(" ")}, ${order}`;
  };

  for (const table of all(document, "table.sort")) {
    for (const head of all(table, "thead th")) head.querySelector("button").onclick = () => sort(table, head);
  }

  // A method that is picked in one legend stands out in all figures.
  const root = document.documentElement;
  const pick = (place) => {
    if (root.dataset.pick === place) delete root.dataset.pick;
    else root.dataset.pick = place;
    for (const one of all(document, ".legend button")) {
      one.setAttribute("aria-pressed", String(one.parentNode.dataset.place === root.dataset.pick));
    }
  };
  for (const item of all(document, ".legend li")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...item.childNodes);
    button.setAttribute("aria-pressed", "false");
    button.onclick = () => pick(item.dataset.place);
    item.append(button);
  }

  // On paper nothing can be opened.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all(document, "details:not([open]):not(.cell)");
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of closed) one.open = false;
  });
})();
