// a product that is clicked is joined to its nearest, in every map
const data = source.data, n = source.selected.indices[0];
lines.forEach((own, i) => {
  const to = n === undefined ? [] : near[i][n], x = data["x" + i], y = data["y" + i];
  own.data = {x0: to.map(() => x[n]), y0: to.map(() => y[n]), x1: to.map(m => x[m]),
    y1: to.map(m => y[m])};
});
