"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const {classes, images, thumbs, maps, near, points} = facts;
  const byId = id => document.getElementById(id);
  const make = (tag, text, name) => {
    const e = document.createElement(tag);
    if (text) e.textContent = text;
    if (name) e.className = name;
    return e;
  };
  const percent = p => Math.round(100 * p) + "%";
  const photo = path => {
    const img = make("img");
    img.src = "data:image/jpeg;base64," + thumbs[path];
    img.alt = "";
    return img;
  };

  // Warm: speaks for the class; blue: against it; the stronger, the less of the picture is seen.
  const heat = ([rows, columns, , values]) => {
    const canvas = make("canvas", "", "heat"), pixels = new ImageData(columns, rows);
    canvas.width = columns;
    canvas.height = rows;
    [...atob(values)].forEach((c, i) => {
      const v = c.charCodeAt(0) << 24 >> 24;  // a signed byte
      pixels.data.set([...(v > 0 ? [255, 110, 0] : [0, 120, 255]), 1.4 * Math.abs(v)], 4 * i);
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  };
  const picture = (path, looked) => {
    const box = make("span", "", "thumb");
    if (thumbs[path]) box.append(photo(path));
    if (thumbs[path] && looked && maps[path]) {
      box.append(heat(maps[path]));
      box.classList.add("lit");
    }
    return box;
  };
  const alike = path => {
    const box = make("span", "", "near"), labels = near[path].map(([, label]) => label).filter(label => label);
    near[path].forEach(([p, label]) => {
      if (!thumbs[p]) return;
      const img = photo(p);
      img.title = `${p}, labelled ${label}`;
      box.append(img);
    });
    box.append(make("span", "like: " + (labels.length ? labels : near[path].map(([p]) => p)).join(", "), "small"));
    return box;
  };
  const explain = (li, path) => {
    if (near[path]) li.append(alike(path));
  };

  const card = ([path, label, given, p, own]) => {
    const li = make("li"), said = make("span", "", "said");
    said.append(make("b", classes[given]), " " + percent(p));
    li.append(picture(path, true), said);
    if (label !== given) li.append(make("span", `labelled ${classes[label]} (${percent(own)})`, "small"));
    li.append(make("span", path, "path"));
    explain(li, path);
    return li;
  };

  document.querySelectorAll(".pictured li").forEach(li => {
    const looked = li.parentNode.classList.contains("looked");
    li.querySelector(".thumb").replaceWith(picture(li.dataset.path, looked));
    if (looked) explain(li, li.dataset.path);
  });
  document.querySelectorAll("td.strip").forEach(td => {
    facts.examples[+td.dataset.class].forEach(path => { if (thumbs[path]) td.append(photo(path)); });
  });
  if (byId("heat")) {
    const turn = () => document.body.classList.toggle("cool", !byId("heat").checked);
    byId("heat").addEventListener("change", turn);
    turn();
  }

  const panel = byId("panel"), MOST = 60;
  const show = (t, g, n) => {
    const rows = images.filter(r => r[1] === t && r[2] === g).slice(0, MOST);
    const head = make("h4", `${n} of ${classes[t]}, ` + (t === g ? "answered rightly" : `taken for ${classes[g]}`));
    const list = make("ul", "", "cards"), close = make("button", "Close");
    close.type = "button";
    close.addEventListener("click", () => { panel.hidden = true; });
    rows.forEach(r => list.append(card(r)));
    panel.replaceChildren(close, head, list);
    if (n > rows.length) panel.append(make("p", `… and ${n - rows.length} more, in predictions.parquet.`));
    panel.hidden = false;
    panel.focus({preventScroll: false});
  };
  document.addEventListener("click", event => {
    const b = event.target.closest("button[data-true]");
    if (b) show(+b.dataset.true, +b.dataset.given, +b.textContent);
  });

  document.querySelectorAll("table.sortable").forEach(table => {
    const body = table.tBodies[0];
    table.querySelectorAll("thead th").forEach((th, i) => {
      const b = make("button", th.textContent);
      b.type = "button";
      th.replaceChildren(b);
      let up = false;
      b.addEventListener("click", () => {
        up = !up;
        const key = tr => { const c = tr.cells[i]; return c.dataset.v === undefined ? c.textContent : +c.dataset.v; };
        const rows = [...body.rows].sort((x, y) => {
          const a = key(x), z = key(y);
          return (typeof a === "number" ? a - z : a.localeCompare(z)) * (up ? 1 : -1);
        });
        body.append(...rows);
        table.querySelectorAll("thead th").forEach(o => o.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", up ? "ascending" : "descending");
      });
    });
  });

  const order = byId("order"), matrix = byId("matrix");
  if (order) order.addEventListener("change", () => {
    const rows = [...matrix.tBodies[0].rows];
    const stat = rows.map(tr => {
      const k = +tr.dataset.k;
      let n = 0, right = 0;
      tr.querySelectorAll("button").forEach(b => { n += +b.textContent; if (+b.dataset.given === k) right = +b.textContent; });
      return {k, n, recall: n ? right / n : 1};
    });
    const by = {given: (a, b) => a.k - b.k, recall: (a, b) => a.recall - b.recall || a.k - b.k, size: (a, b) => b.n - a.n || a.k - b.k};
    const place = new Map(stat.sort(by[order.value]).map((s, i) => [s.k, i]));
    const sorted = nodes => nodes.sort((a, b) => place.get(+a.dataset.k) - place.get(+b.dataset.k));
    matrix.tBodies[0].append(...sorted(rows));
    [matrix.tHead.rows[0], ...matrix.tBodies[0].rows].forEach(tr => tr.append(...sorted([...tr.querySelectorAll("[data-k]")])));
  });

  // The map: one stop of the tab key; arrows go to the nearest image in that direction.
  const field = document.querySelector("svg.map");
  if (field) {
    const marks = [...field.querySelectorAll("[role=option]")], tip = byId("tip"), spot = byId("spot");
    const places = marks.map(m => m.getAttribute("transform").match(/-?[\d.]+/g).map(Number));
    let current = -1;
    const light = label => {
      field.classList.toggle("one", label !== "");
      marks.forEach((m, i) => m.classList.toggle("lit", facts.labels[i] === label));
    };
    const hide = () => {
      if (current >= 0) marks[current].setAttribute("aria-selected", "false");
      tip.hidden = true;
      light(spot.value);
    };
    const tell = i => {
      hide();
      current = i;
      const path = points[i], answer = facts.answers[i];
      marks.forEach((m, j) => { m.tabIndex = i === j ? 0 : -1; });
      marks[i].setAttribute("aria-selected", "true");
      tip.replaceChildren(picture(path, false), make("b", facts.labels[i] || "no label"));
      if (answer) tip.append(make("span", answer[0] === facts.labels[i] ? `answered rightly${answer[1] === null ? "" : ", " + percent(answer[1])}`
        : `answered ${answer[0]}${answer[1] === null ? "" : ", " + percent(answer[1])}`, answer[2] ? "missed" : ""));
      tip.append(make("span", path, "path"));
      tip.hidden = false;
      const box = field.viewBox.baseVal, scale = field.clientWidth / box.width;
      const [x, y] = places[i].map(v => v * scale), w = tip.offsetWidth, h = tip.offsetHeight;
      const beside = field.clientWidth > 3 * w, within = (v, most) => Math.max(0, Math.min(v, most)) + "px";
      tip.style.left = within(beside ? (x > field.clientWidth / 2 ? x - w - 18 : x + 18) : x - w / 2, field.clientWidth - w);
      tip.style.top = beside ? within(y - h / 2, field.clientHeight - h) : (y > h + 14 ? y - h - 14 : y + 14) + "px";
      light(spot.value || facts.labels[i]);
    };
    const nearest = (event, most) => {
      const frame = field.getBoundingClientRect(), scale = field.viewBox.baseVal.width / frame.width;
      const x = (event.clientX - frame.left) * scale, y = (event.clientY - frame.top) * scale;
      let best = -1, least = (most * scale) ** 2;
      places.forEach(([a, b], i) => {
        const d = (a - x) ** 2 + (b - y) ** 2;
        if (d < least && (!spot.value || facts.labels[i] === spot.value)) { least = d; best = i; }
      });
      return best;
    };
    marks.forEach((m, i) => { m.tabIndex = i ? -1 : 0; });
    field.addEventListener("pointermove", event => {
      if (event.pointerType === "touch" || field.contains(document.activeElement)) return;
      const i = nearest(event, 12);
      if (i < 0) hide(); else if (i !== current || tip.hidden) tell(i);
    });
    field.addEventListener("pointerleave", () => { if (!field.contains(document.activeElement)) hide(); });
    field.addEventListener("click", event => {
      const i = nearest(event, 24);
      if (i >= 0) { marks[i].focus({preventScroll: true}); tell(i); } else { document.activeElement.blur(); hide(); }
    });
    const frame = field.parentNode;  // Chromium takes a drawing that listens to focus for a stop of the tab key
    frame.addEventListener("focusin", event => { const i = marks.indexOf(event.target); if (i >= 0) tell(i); });
    frame.addEventListener("focusout", hide);
    field.addEventListener("keydown", event => {
      const way = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[event.key];
      if (event.key === "Escape") hide();
      if (event.key === "Home") marks[0].focus();
      if (event.key === "End") marks[marks.length - 1].focus();
      if (way || event.key === "Home" || event.key === "End") event.preventDefault();
      if (!way) return;
      let best = -1, least = Infinity;
      places.forEach(([a, b], i) => {
        const dx = a - places[current][0], dy = b - places[current][1];
        const along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
        if (i === current || along < 0 || along === 0 && (aside || i < current) || aside > 2 * along && along > 0) return;
        if (spot.value && facts.labels[i] !== spot.value) return;
        if (along + 2 * aside < least) { least = along + 2 * aside; best = i; }
      });
      if (best >= 0) marks[best].focus();
    });
    spot.addEventListener("change", () => {
      hide();
      const first = marks.findIndex((m, i) => !spot.value || facts.labels[i] === spot.value);
      marks.forEach((m, i) => { m.tabIndex = i === first ? 0 : -1; });
    });
  }

  // What is folded is unfolded on paper.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach(d => { d.open = true; });
  });
  window.addEventListener("afterprint", () => folded.forEach(d => { d.open = false; }));
})();
