// No buttons: one of them would upload the picture. A drag zooms, a double click resets.
const config = {responsive: true, displayModeBar: false, showSendToCloud: false, plotlyServerURL: ""};
for (const element of document.querySelectorAll(".plot")) setTimeout(() => {  // one at a time: the page is there first
  const {data, layout} = JSON.parse(element.closest("figure").querySelector("script").textContent);
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;  // a finger scrolls the page
  Plotly.newPlot(element, data, layout, config);
});
