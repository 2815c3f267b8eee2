export default { render({ model, el }) {
  el.style.display = 'none';
  let watcher, ruler, plots = 0;
  let soon;
  const fit = () => { // plotly listens to the window, and should look when all has found its place
    clearTimeout(soon);
    soon = setTimeout(() => window.dispatchEvent(new Event('resize')), 120);
  };
  const name = root => {
    root.querySelectorAll('option:not([title])').forEach(o => { o.title = model.get('tips')[o.textContent] ?? '' });
    root.querySelectorAll('[role=slider]:not([aria-label])').forEach(handle => {
      const label = handle.closest('.widget-inline-hbox')?.querySelector('.widget-label');
      if (label?.textContent) handle.setAttribute('aria-label', label.textContent);
    });
  };
  const count = by => { model.set('views', Math.max(0, model.get('views') + by)); model.save_changes() };
  count(1);
  const begin = () => {
    const root = el.closest('.imgcls');
    if (!root) return setTimeout(begin, 100); // not on the page yet
    ruler = new ResizeObserver(() => {
      const narrow = root.clientWidth > 0 && root.clientWidth < 560;
      if (narrow !== model.get('narrow')) { model.set('narrow', narrow); model.save_changes() }
      fit();
    });
    ruler.observe(root);
    watcher = new MutationObserver(() => {
      name(root);
      const now = root.querySelectorAll('.js-plotly-plot .main-svg').length;
      if (now === plots) return;
      plots = now;
      root.querySelectorAll('.ic-chart').forEach(o => ruler.observe(o));
      fit();
    });
    watcher.observe(root, { childList: true, subtree: true });
    name(root);
  };
  begin();
  return () => { // the cell is run again, say; a page that is closed is not heard of
    watcher?.disconnect(); ruler?.disconnect(); count(-1);
  };
} };
