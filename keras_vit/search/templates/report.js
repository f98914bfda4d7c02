// No buttons: one of them would upload the picture. A drag zooms, a double click resets.
const config = {responsive: true, displayModeBar: false, showSendToCloud: false, plotlyServerURL: ""};
for (const element of document.querySelectorAll(".plot")) setTimeout(() => {  // one at a time: the page is there first
  const {data, layout} = JSON.parse(element.closest("figure").querySelector("script").textContent);
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;  // a finger scrolls the page
  Plotly.newPlot(element, data, layout, config);
});
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
