// The table: sorting by a heading, and a filter that the plots follow.
"use strict";
const filter = {
  text: document.getElementById("filter-text"),
  retention: document.getElementById("filter-retention"),
  count: document.getElementById("filter-count"),
  shown: new Set(),
};

function applyFilter() {
  const words = filter.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.querySelectorAll(".results tr[data-arm]")];
  filter.shown.clear();
  for (const row of rows) {
    const name = row.cells[0].dataset.text.toLowerCase();
    const fits = words.every((word) => name.includes(word)) &&
      (!filter.retention.value || filter.retention.value === row.dataset.retention);
    row.hidden = !fits;
    if (fits) filter.shown.add(row.dataset.arm);
  }
  for (const table of document.querySelectorAll(".results")) showGroups(table);
  const left = rows.filter((row) => !row.hidden).length;
  filter.count.textContent = `${left} of ${rows.length} rows`;
  document.dispatchEvent(new Event("filtered"));
}

// The headings of budgets stand over rows that are shown, as long as the rows of a budget stand together.
function showGroups(table) {
  const sorted = table.querySelector("[aria-sort]");
  const together = !sorted || sorted.cellIndex === 1;
  for (const group of table.querySelectorAll(".group")) {
    const own = [...table.querySelectorAll("tr[data-arm]:not([hidden])")]
      .filter((row) => row.dataset.retention === group.dataset.retention);
    group.hidden = !together || !own.length;
    const first = [...table.tBodies[0].rows]
      .find((row) => row.dataset.arm !== undefined && row.dataset.retention === group.dataset.retention);
    if (together) first.before(group);
  }
}

function sortBy(table, column, ascending) {
  const value = (row) => {
    const cell = row.cells[column];
    if (cell.dataset.text !== undefined) return cell.dataset.text;
    return cell.dataset.number === "" ? null : Number(cell.dataset.number);
  };
  const body = table.tBodies[0];
  const rows = [...body.querySelectorAll("tr[data-arm]")];
  rows.sort((first, second) => {
    const [a, b] = [value(first), value(second)];
    // Where there is no number, the row stands last whatever the direction.
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "string" ? a.localeCompare(b) : a - b;
    return ascending ? order : -order;
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll(".results")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      // Names from a to z first, numbers from the largest.
      const ascending = before ? before === "descending" : column === 0;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, column, ascending);
      showGroups(table);
    });
  });
}
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
filter.text.addEventListener("input", applyFilter);
filter.retention.addEventListener("change", applyFilter);
applyFilter();
