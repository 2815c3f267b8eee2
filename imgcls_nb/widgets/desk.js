const el = (tag, props = {}, ...kids) => {
  const o = Object.assign(document.createElement(tag), props)
  for (const [k, v] of Object.entries(props.attrs ?? {})) o.setAttribute(k, v)
  o.append(...kids)
  return o
}
const DECIDING = new Set("xmu0123456789")
const OWN = new Set([...DECIDING, "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", " ",
  "Escape", "/", "a"])

function render({ model, el: root }) {
  root.classList.add("icd-frame")
  const uid = "d" + Math.random().toString(36).slice(2)
  const send = (what, more = {}) => {
    list.setAttribute("aria-busy", "true")
    model.send({ what, n: [uid, ++sent], ...more })
  }
  const decide = (what, more = {}) => {
    const m = model.get("marks"), card = (sure && m.cards[at]) || {}
    send(what, { ...more, seen: { turn: m.turn, name: card.name ?? "", tag: card.tag ?? "" } })
    if (what === "undo" || more.key === "u") sure = false
    else if (!m.chosen) step(at + 1)
  }
  const press = (label, more) => el("button", { type: "button", className: "icd-button", ...more }, label)
  const act = (label, key, what) => {
    const o = press(label, { onclick: () => decide(what), attrs: { "aria-keyshortcuts": key } })
    o.append(el("kbd", {}, key))
    return o
  }
  const files = el("input", { type: "file", multiple: true, accept: "image/*", hidden: true,
    onchange: () => take(files) })
  const open = press("Choose files", { onclick: () => files.click() })
  const what = el("span", { className: "icd-what" }), where = el("span")
  const status = el("div", { className: "icd-status", attrs: { role: "status" } }, what, " ", where)
  const list = el("div", { className: "icd-grid", tabIndex: 0,
    attrs: { role: "listbox", "aria-multiselectable": "true", "aria-label": "Pictures" } })
  const empty = el("div", { className: "ic-empty icd-empty" })
  const back = press("‹ Page", { onclick: () => send("turn", { by: -1 }) })
  const next = press("Page ›", { onclick: () => send("turn", { by: 1 }) })
  const big = el("img", { className: "icd-big", alt: "" })
  const facts = el("div", { className: "icd-facts" })
  const chips = el("div", { className: "icd-chips", attrs: { role: "group", "aria-label": "Classes to choose from" } })
  const find = el("input", { type: "text", className: "icd-find", placeholder: "another class  /",
    attrs: { "aria-label": "Class to choose by name", list: uid + "c" } })
  const names = el("datalist", { id: uid + "c" })
  const editing = el("div", { className: "icd-acts" }, act("Ignore", "x", "ignore"), act("Move", "m", "move"),
    act("Undo", "u", "undo"))
  const side = el("div", { className: "icd-side" }, big, facts, chips, find, names, editing)
  const help = el("p", { className: "icd-help" })
  const desk = el("div", { className: "icd", attrs: { "data-lm-suppress-shortcuts": "true" } },
    help, el("div", { className: "icd-main" },
      el("div", { className: "icd-top" }, status, open, files, back, next), list, empty), side)
  let cards = [], floor = 0
  let at = -1, sure = true, sent = 0 // the card with the frame, whether it is known, and how many messages were sent
  let typing = false // what a key has moved is brought into sight; what lies under a mouse stays where it is

  const take = async from => { // files that were chosen or dropped, one message each
    for (const file of [...from.files])
      model.send({ what: "drop", name: file.name }, undefined, [await file.arrayBuffer()])
    if (from === files) files.value = ""
  }
  const columns = () => {
    const tops = cards.map(o => o.offsetTop)
    return Math.max(1, tops.filter(o => o === tops[0]).length)
  }
  const reveal = card => { // the pictures are scrolled, and the notebook only for who types
    const [top, bottom] = [card.offsetTop - 4, card.offsetTop + card.offsetHeight + 4]
    list.scrollTop = Math.min(Math.max(list.scrollTop, bottom - list.clientHeight), top)
    if (!typing || !list.matches(":focus")) return
    for (const o of [chips.querySelector("[aria-pressed=true]"), big, card]) // where not all have room, the last wins
      o?.scrollIntoView({ block: "nearest" })
  }
  const frame = () => {
    cards.forEach((o, i) => o.classList.toggle("icd-at", i === at))
    if (at >= 0 && cards.length) {
      list.setAttribute("aria-activedescendant", uid + at)
      reveal(cards[at])
    } else list.removeAttribute("aria-activedescendant")
  }
  const step = to => { // where Python will go as well
    sure = sure && to in cards
    if (sure) at = to
    frame()
  }
  const drawPage = () => {
    const page = model.get("page")
    const point = (e, i) => {
      list.focus({ preventScroll: true })
      send("point", { at: i, more: e.ctrlKey || e.metaKey, extend: e.shiftKey })
      step(i)
    }
    cards = page.cards.map((o, i) => el("div",
      { className: "icd-card", id: uid + i, attrs: { role: "option" }, onclick: e => point(e, i) },
      el("img", { src: o.src, alt: "", className: o.tiny ? "ic-tiny" : "", draggable: false }),
      el("span", { className: "icd-tag" }), el("span", { className: "icd-lines" })))
    list.replaceChildren(...cards)
    list.classList.toggle("icd-long", page.long)
    list.hidden = !cards.length
    empty.hidden = cards.length > 0
    empty.textContent = page.empty
    list.style.setProperty("--icd-size", page.size + "px")
    floor = Math.max(floor, page.height)
    list.style.minHeight = empty.style.minHeight = floor + "px"
    drawMarks()
    floor = Math.max(floor, list.offsetHeight)
  }
  const drawMarks = () => {
    const m = model.get("marks")
    if (m.heard?.[0] !== uid || m.heard[1] >= sent) { // else another answer is on its way
      [at, sure] = [m.at, true]
      list.setAttribute("aria-busy", "false")
    }
    cards.forEach((o, i) => {
      const c = m.cards[i] ?? {}
      o.setAttribute("aria-selected", String(!!c.selected))
      o.querySelector(".icd-tag").textContent = c.tag ?? ""
      o.dataset.edit = c.edit ?? ""
      o.dataset.band = c.band ?? ""
      o.querySelector(".icd-lines").replaceChildren(...(c.lines ?? []).map(t => el("span", { title: t }, t)))
      o.setAttribute("aria-label", [c.name, ...(c.lines ?? []), c.tag].filter(Boolean).join(", "))
      o.title = c.name ?? ""
    })
    ;[what.textContent, where.textContent] = m.status
    what.title = m.status[0]
    back.disabled = m.first
    next.disabled = m.last
    open.hidden = !m.drops
    side.hidden = m.at < 0 || !m.side
    desk.classList.toggle("icd-wide", side.hidden)
    big.src = m.big ?? ""
    big.alt = m.alt ?? ""
    big.className = "icd-big" + (m.tiny ? " ic-tiny" : "")
    facts.replaceChildren(...(m.facts ?? []).map(([k, v]) => el("p", {}, el("b", {}, k), el("span", { title: v }, v))))
    chips.replaceChildren(...(m.choices ?? []).map(o => {
      const chip = el("button", { type: "button", className: "icd-chip", onclick: () => decide("choose", { label: o.label }),
        attrs: { "aria-pressed": String(!!o.now) } },
        el("kbd", {}, o.key), el("span", { className: "icd-name", title: o.label }, o.label),
        el("span", { className: "icd-share" }, o.share))
      chip.style.setProperty("--share", o.width)
      return chip
    }))
    editing.hidden = chips.hidden = find.hidden = !m.editable
    help.textContent = m.help
    frame()
  }
  const drawNames = () => names.replaceChildren(...model.get("vocab").map(o => el("option", { value: o })))

  desk.addEventListener("keydown", e => {
    if (e.target === find) {
      if (e.key === "Enter") { decide("choose", { label: find.value }); find.value = ""; list.focus({ preventScroll: true }) }
      else if (e.key === "Escape") list.focus({ preventScroll: true })
      e.stopPropagation()
      return
    }
    if (e.ctrlKey || e.metaKey || e.altKey || !OWN.has(e.key)) return
    if (e.target !== list && (e.key === " " || e.key === "Escape")) return
    e.preventDefault()
    e.stopPropagation()
    typing = true
    const key = { key: e.key, shift: e.shiftKey, columns: columns() }
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - key.columns, ArrowDown: at + key.columns }[e.key]
    if (e.key === "/") find.focus()
    else if (DECIDING.has(e.key)) e.repeat || decide("key", key)
    else {
      send("key", key)
      if (![" ", "a", "Escape"].includes(e.key)) step(to)
    }
  })
  for (const kind of ["pointerdown", "wheel"]) desk.addEventListener(kind, () => { typing = false }, { passive: true })
  desk.addEventListener("dragover", e => {
    if (!model.get("marks").drops || !e.dataTransfer.types.includes("Files")) return
    e.preventDefault()
    e.stopPropagation()
    desk.classList.add("icd-over")
  })
  desk.addEventListener("dragleave", () => desk.classList.remove("icd-over"))
  desk.addEventListener("drop", e => {
    desk.classList.remove("icd-over")
    if (!model.get("marks").drops) return
    e.preventDefault()
    e.stopPropagation()
    take(e.dataTransfer)
  })
  model.on("change:page", drawPage)
  model.on("change:marks", drawMarks)
  model.on("change:vocab", drawNames)
  drawNames()
  drawPage()
  root.append(desk)
}
export default { render }
