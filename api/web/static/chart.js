// Plotly in the page's own colours, light and dark. `Plotly` is global: the wheel's plotly.min.js is a classic script.

const scheme = matchMedia("(prefers-color-scheme: dark)");

/** A colour of style.css by name: colour("ours"). */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Draw into `node` what `build(data)` describes ({traces, layout}); again whenever the colour scheme changes. */
export function chart(node, build) {
  let latest;
  const draw = () => {
    const { traces, layout } = build(latest);
    const text = { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("faint") };
    window.Plotly.react(node, traces, {
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      font: text,
      hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), font: { ...text, color: colour("ink") } },
      showlegend: false,
      uirevision: "keep", // a reader's zoom outlives the next poll
      ...layout,
    }, { displayModeBar: false, responsive: true });
  };
  scheme.addEventListener("change", () => latest && draw());
  return (data) => {
    latest = data;
    draw();
  };
}

/** An axis with a title and quiet lines. */
export const axis = (title, more = {}) => ({
  title: { text: title, standoff: 8 },
  gridcolor: colour("line"),
  linecolor: colour("line"),
  zeroline: false,
  ticks: "outside",
  ticklen: 3,
  tickcolor: colour("line"),
  ...more,
});

/** Means over neighbours, a window wide enough that a curve of many steps reads as one line. */
export function smooth(values) {
  const reach = Math.max(1, Math.round(values.length / 50));
  return values.map((_, index) => {
    const near = values.slice(Math.max(0, index - reach), index + reach + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

/** For an axis that counts from 0 to `last`: no tick between two neighbours. */
export const counting = (last) => ({ tickformat: "d", ...(last < 8 && { dtick: 1 }) });
