"use strict";
// Sorts the table of runs by the column whose heading is pressed.
for (const heading of document.querySelectorAll("th button")) {
  heading.addEventListener("click", () => {
    const cell = heading.closest("th");
    const body = document.querySelector("tbody");
    const column = cell.cellIndex;
    const up = cell.getAttribute("aria-sort") !== "ascending";
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      const [m, n] = [Number(x), Number(y)];
      const compared = x !== "" && y !== "" && !Number.isNaN(m) && !Number.isNaN(n)
        ? m - n : x.localeCompare(y);
      return up ? compared : -compared;
    };
    for (const row of [...body.rows].sort(order)) body.append(row);
    for (const other of document.querySelectorAll("th")) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
  });
}
