// Charts answer to the mouse and follow the width and the colour scheme; tables sort, filter and save as CSV.
'use strict';
(() => {
  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const look = () => {
    const ink = dark.matches ? '#d5dae0' : '#333333';
    const axis = {labelColor: ink, titleColor: ink};
    return {background: 'transparent', axis, legend: axis, header: {labelColor: ink}, title: {color: ink, subtitleColor: ink}, text: {color: ink}};
  };
  const panelled = (spec) => spec.facet || spec.concat || spec.repeat;
  function fit(spec, width) {
    if (!panelled(spec)) {
      if (typeof spec.width === 'number') spec.width = Math.max(240, Math.min(width - 60, 1100));
      spec.autosize = {type: 'fit-x', contains: 'padding'};
      return spec;
    }
    for (const panel of spec.concat || []) {
      if (panel.width > width - 110) panel.width = Math.max(220, width - 110);
    }
    const inner = spec.spec || (spec.concat && spec.concat[0]) || {};
    const panel = (inner.width || 250) + 70;
    spec.columns = Math.max(1, Math.min(spec.columns || 3, Math.floor(width / panel)));
    return spec;
  }
  function draw() {
    for (const source of document.querySelectorAll('script[data-chart]')) {
      const place = document.getElementById(source.dataset.chart);
      const spec = fit(JSON.parse(source.textContent), place.clientWidth || 800);
      delete spec.config.background; // White, for files; it would outrank `look`.
      window.vegaEmbed(place, spec, {actions: false, config: look(), renderer: 'svg', tooltip: {theme: dark.matches ? 'dark' : 'light'}})
        .then((view) => { (place.view && place.view.finalize()); place.view = view.view; }, (error) => { place.textContent = String(error); });
    }
  }
  if (window.vegaEmbed) {
    draw();
    dark.addEventListener('change', draw);
    let width = window.innerWidth, waiting = 0;
    window.addEventListener('resize', () => {
      if (window.innerWidth === width) return;
      width = window.innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(draw, 200);
    });
    for (const folded of document.querySelectorAll('details')) {
      folded.addEventListener('toggle', () => { if (folded.open && folded.querySelector('.chart')) draw(); }, {once: true});
    }
  }

  const key = (cell) => cell.dataset.key === undefined ? cell.textContent.trim() : Number(cell.dataset.key);
  for (const box of document.querySelectorAll('.table')) {
    const body = box.querySelector('tbody');
    const heads = [...box.querySelectorAll('th')];
    heads.forEach((head, column) => head.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a.cells[column]), y = key(b.cells[column]);
        if (typeof x !== typeof y) return typeof x === 'number' ? -1 : 1;
        return (x > y) - (x < y);
      });
      if (down) rows.reverse();
      body.append(...rows);
    }));
    if (!box.dataset.csv) continue;
    const tools = document.createElement('div');
    tools.className = 'tools';
    const filter = document.createElement('input');
    filter.type = 'search';
    filter.placeholder = 'filter rows';
    filter.addEventListener('input', () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
    const save = document.createElement('button');
    save.type = 'button';
    save.textContent = 'CSV';
    save.addEventListener('click', () => {
      const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
      const lines = [heads, ...[...body.rows].filter((row) => !row.hidden).map((row) => [...row.cells])];
      const csv = lines.map((cells) => cells.map((cell) => quoted(cell.textContent.trim())).join(',')).join('\r\n');
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob([csv], {type: 'text/csv'}));
      link.download = box.dataset.csv + '.csv';
      link.click();
    });
    tools.append(filter, save);
    box.prepend(tools);
  }
  for (const button of document.querySelectorAll('[data-copy]')) {
    button.addEventListener('click', () => {
      navigator.clipboard.writeText(button.parentElement.querySelector('pre').textContent);
      button.textContent = 'copied';
    });
  }
})();
