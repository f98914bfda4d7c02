for (const button of document.querySelectorAll(".command button")) button.onclick = () => {
  getSelection().selectAllChildren(button.nextSibling);
  if (document.execCommand("copy")) button.textContent = "copied";  // works in files, where there is no clipboard API
};
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentNode, body = head.closest("table").tBodies[0];
  const down = head.ariaSort === "ascending";
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
  const key = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
  const compare = (a, b) => (key(a) === "–") - (key(b) === "–")
    || (down ? -1 : 1) * (key(a) - key(b) || key(a).localeCompare(key(b), undefined, {numeric: true}));
  body.append(...[...body.rows].sort(compare));
};
// What does not fit says that it goes on.
const hint = scroll => {
  const wide = scroll.scrollWidth > scroll.clientWidth + 1, high = scroll.scrollHeight > scroll.clientHeight + 1;
  const words = [wide && "sideways →", high && "down ↓"].filter(Boolean).join(" and ");
  scroll.parentNode.dataset.more = words && `goes on: scroll ${words}`;
};
const watch = new ResizeObserver(entries => entries.forEach(entry => hint(entry.target.closest(".scroll"))));
for (const scroll of document.querySelectorAll(".scroll")) for (const part of [scroll, ...scroll.children]) watch.observe(part);
