"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const {classes, images, thumbs} = facts;
  const make = (tag, text, name) => {
    const e = document.createElement(tag);
    if (text) e.textContent = text;
    if (name) e.className = name;
    return e;
  };
  const picture = (path, about) => {
    const box = make("span", "", "thumb");
    if (thumbs[path]) {
      const img = make("img");
      img.src = thumbs[path];
      img.alt = about;
      img.width = img.height = 72;
      box.append(img);
    }
    return box;
  };
  const percent = p => Math.round(100 * p) + "%";

  const card = ([path, label, given, p, own]) => {
    const li = make("li"), said = make("span", "", "said");
    said.append(make("b", classes[given]), " " + percent(p));
    li.append(picture(path, ""), said);
    if (label !== given) li.append(make("span", `labelled ${classes[label]} (${percent(own)})`, "small"));
    li.append(make("span", path, "path"));
    return li;
  };

  document.querySelectorAll(".pictured li").forEach(li => {
    li.querySelector(".thumb").replaceWith(picture(li.dataset.path, ""));
  });

  const own = classes.map(() => []);
  images.forEach(r => { if (thumbs[r[0]] && own[r[1]].length < 4 && r[1] === r[2]) own[r[1]].push(r[0]); });
  document.querySelectorAll("td.strip").forEach(td => {
    own[+td.dataset.class].forEach(path => {
      const img = make("img");
      img.src = thumbs[path];
      img.alt = "";
      td.append(img);
    });
  });

  const panel = document.getElementById("panel"), MOST = 60;
  const show = (t, g) => {
    const rows = images.filter(r => r[1] === t && r[2] === g);
    panel.replaceChildren();
    const head = t === g ? `${rows.length} of ${classes[t]}, answered rightly`
      : `${rows.length} of ${classes[t]}, taken for ${classes[g]}`;
    const h = make("h4", head);
    const list = make("ul", "", "cards");
    rows.slice(0, MOST).forEach(r => list.append(card(r)));
    panel.append(h, list);
    if (rows.length > MOST) panel.append(make("p", `and ${rows.length - MOST} more, in predictions.parquet`));
    panel.hidden = false;
    panel.focus({preventScroll: false});
  };
  document.addEventListener("click", event => {
    const b = event.target.closest("button[data-true]");
    if (b) show(+b.dataset.true, +b.dataset.given);
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

  const order = document.getElementById("order"), matrix = document.getElementById("matrix");
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
})();
