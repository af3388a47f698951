// The grid of cards. Cards move to their new rank with the FLIP technique and the Web Animations API: the positions
// are measured before and after the change, and the compositor animates, so the new list is on the screen immediately.
// NiceGUI renders all components of a page when one element changes: v-memo skips unchanged cards.
// Emits act {item_id, action, token}, undo {event_id, token}, open {item_id}, why {item_id}, and seen {impression_id}
// once per list, when it is painted on a visible page: not in a hidden tab, before the user returns to it.
// Keys on a card: L S B P for its buttons, U to undo the last action, W for why, Enter to open, arrows to move the focus.

const ICONS = {
  like: "M12 20.3 4.6 13a4.9 4.9 0 0 1 0-7 4.9 4.9 0 0 1 7 0l.4.5.5-.5a4.9 4.9 0 0 1 7 0 4.9 4.9 0 0 1 0 7Z",
  skip: "M6 6l12 12M18 6 6 18",
  basket: "M4 9h16l-1.6 9.5a1.5 1.5 0 0 1-1.5 1.3H7.1a1.5 1.5 0 0 1-1.5-1.3ZM8.5 9 11 4m4.500 5L13 4",
  purchase: "M4 12.500 9.500 18 20 6.500",
};
const ACTIONS = [
  { action: "like", label: "Like", key: "l" },
  { action: "skip", label: "Skip", key: "s" },
  { action: "basket", label: "Basket", key: "b" },
  { action: "purchase", label: "Buy", key: "p" },
];

// Milliseconds since the epoch.
const now = () => performance.timeOrigin + performance.now();

// Runs `work` after the current frame is painted: a message posted in the frame is handled next.
function afterPaint(work) {
  const channel = new MessageChannel();
  channel.port1.onmessage = work;
  channel.port2.postMessage(null);
}

export default {
  template: `
    <section class="ac-grid" aria-label="Recommendations">
      <div class="ac-headline">
        <p role="status" aria-live="polite" data-testid="headline">
          <span v-if="headline">{{ headline }}</span>
          <span v-else-if="hint" class="ac-hint">{{ hint }}</span>
          <span v-if="onScreenMs !== null" class="ac-ms" data-testid="on-screen-ms">{{ onScreenMs }} ms from click to screen</span>
        </p>
        <button v-if="undo" type="button" class="ac-button" data-testid="undo-last" title="Undo the last action (U on a card)"
                :aria-label="'Undo the last action: ' + undoTitle" @click="undoLast">Undo</button>
      </div>
      <ol class="ac-cards" data-testid="cards">
        <li v-for="card in cards" :key="card.id" v-memo="[card, pending[card.id]]" class="ac-card" :data-item="card.id" tabindex="0"
            :class="{pending: pending[card.id], entered: card.entered, untitled: card.untitled}"
            :style="{'--hue': card.hue}" :aria-label="'Rank ' + card.rank + ': ' + card.title"
            @keydown="onKey($event, card)">
          <div class="ac-art" @click="open(card)">
            <div class="ac-art-svg" v-html="card.art"></div>
            <span class="ac-rank">{{ card.rank }}</span>
            <span v-if="card.moved" class="ac-moved" :class="card.moved > 0 ? 'up' : 'down'" :key="answered + card.moved" :title="(card.moved > 0 ? 'up ' : 'down ') + Math.abs(card.moved) + (cause ? ': ' + cause : '')">
              {{ card.moved > 0 ? '▲' : '▼' }} {{ Math.abs(card.moved) }}<span class="ac-sr">{{ card.moved > 0 ? ' up' : ' down' }}</span>
            </span>
            <span v-if="card.entered" class="ac-moved new" :title="cause ? 'added: ' + cause : ''">added</span>
            <span v-if="card.badges.length" class="ac-badges"><span v-for="badge in card.badges" :key="badge" class="ac-badge" :class="badge.split(' ')[0]">{{ badge }}</span></span>
          </div>
          <div class="ac-body">
            <h2><a class="ac-title" :href="card.href" @click.exact.prevent="open(card)">{{ card.title }}</a></h2>
            <p class="ac-category">{{ card.category }}<span v-if="card.ratings" class="ac-ratings" data-testid="ratings"> · ★ {{ card.ratings }}</span></p>
            <p class="ac-reason" :title="card.source">{{ card.reason }}</p>
            <button v-if="card.contributions.length" type="button" class="ac-score" :title="receipt(card)" data-action="why"
                    :aria-label="'Why? ' + receipt(card)" @click="$emit('why', { item_id: card.id })">
              <span class="ac-bar">
                <i v-for="part in card.contributions" :key="part.name" :class="['part-' + part.name, {minus: part.value < 0}]"
                   :style="{width: part.width + '%'}"></i>
              </span>
              <span v-if="card.confidence" class="ac-confidence" :data-dots="card.confidence.dots"><span class="ac-dots" aria-hidden="true"><i v-for="n in 3" :class="{on: n <= card.confidence.dots}"></i></span>{{ card.confidence.words }}</span>
              <span class="ac-why" aria-hidden="true">why?</span>
            </button>
          </div>
          <div class="ac-actions">
            <button v-for="a in actions" :key="a.action" type="button" :class="'act-' + a.action" :data-action="a.action"
                    :disabled="!!pending[card.id]" :title="a.label + ' (' + a.key.toUpperCase() + ')'"
                    :aria-label="a.label + ': ' + card.title" @click="act(card, a.action)">
              <svg viewBox="0 0 24 24" aria-hidden="true"><path :d="icons[a.action]"/></svg><span>{{ a.label }}</span>
            </button>
          </div>
        </li>
      </ol>
      <p v-if="!cards.length" class="ac-empty">No items yet. The list appears once the first events are counted.</p>
    </section>`,
  props: { cards: Array, headline: String, hint: String, answered: String, failed: String, undo: String, undoTitle: String, cause: String, stamps: Object, impression: String },
  data() {
    return { pending: {}, clicks: {}, onScreenMs: null, icons: ICONS, actions: ACTIONS };
  },
  created() {
    this.before = null; // rectangles of the cards before a change, by item
    this.moves = []; // running animations
    this.seen = ""; // the last list reported as seen
  },
  mounted() {
    document.addEventListener("visibilitychange", this.reportSeen);
    this.reportSeen();
  },
  unmounted() {
    document.removeEventListener("visibilitychange", this.reportSeen);
  },
  beforeUpdate() {
    if (this.changed) this.before = new Map(this.cardElements().map((card) => [card.dataset.item, card.getBoundingClientRect()]));
    this.changed = false;
  },
  updated() {
    if (this.before) this.move(this.before);
    this.before = null;
  },
  watch: {
    cards() {
      this.changed = true;
      const focused = this.focusedCard();
      this.$nextTick(() => this.restoreFocus(focused));
    },
    answered(token) {
      this.settle(token, true);
    },
    failed(token) {
      this.settle(token, false);
    },
    impression() {
      requestAnimationFrame(() => afterPaint(this.reportSeen));
    },
  },
  methods: {
    act(card, action) {
      if (this.pending[card.id]) return;
      const token = card.id + "|" + action + "|" + performance.now();
      this.clicks[token] = { at: performance.now(), id: card.id };
      this.pending[card.id] = token;
      this.$emit("act", { item_id: card.id, action, token });
      setTimeout(() => this.pending[card.id] === token && delete this.pending[card.id], 4000);
    },
    undoLast() {
      if (!this.undo) return;
      const token = "undo|" + this.undo + "|" + performance.now();
      this.clicks[token] = { at: performance.now() };
      this.$emit("undo", { event_id: this.undo, token });
    },
    reportSeen() {
      if (!this.impression || this.impression === this.seen || document.visibilityState !== "visible") return;
      this.seen = this.impression;
      this.$emit("seen", { impression_id: this.impression });
    },
    open(card) {
      this.$emit("open", { item_id: card.id });
    },
    settle(token, succeeded) {
      const click = this.clicks[token];
      if (!click) return;
      delete this.clicks[token];
      delete this.pending[click.id];
      if (!succeeded) return;
      const stamps = { ...this.stamps, got: now() };
      this.$nextTick(() => {
        stamps.dom = now();
        requestAnimationFrame(() => {
          stamps.frame = now();
          afterPaint(() => this.measure(click, stamps));
        });
      });
    },
    measure(click, stamps) {
      const ms = performance.now() - click.at;
      this.onScreenMs = Math.round(ms);
      (window.afterclickLatencies ||= []).push(ms);
      (window.afterclickStages ||= []).push({ clicked: performance.timeOrigin + click.at, ...stamps, painted: now() });
    },
    move(before) {
      for (const move of this.moves) move.cancel();
      this.moves = [];
      if (!before.size || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
      const cards = this.cardElements();
      const after = cards.map((card) => card.getBoundingClientRect()); // the layout that the frame needs in any case
      cards.forEach((card, n) => {
        const was = before.get(card.dataset.item);
        const x = was ? was.left - after[n].left : 0;
        const y = was ? was.top - after[n].top : 0;
        if (!was) this.moves.push(card.animate([{ opacity: 0, transform: "scale(0.92)" }, {}], { duration: 300, easing: "ease-out" }));
        else if (x || y) this.moves.push(card.animate([{ transform: `translate(${x}px, ${y}px)` }, {}], { duration: 380, easing: "cubic-bezier(0.2, 0.8, 0.2, 1)" }));
      });
    },
    receipt(card) {
      const parts = card.contributions.map((p) => p.label + " " + (p.value > 0 ? "+" : "") + p.value.toFixed(2));
      return (card.confidence ? card.confidence.words + ". " : "") + "Score " + card.score.toFixed(2) + (parts.length ? " = " + parts.join(", ") : "");
    },
    cardElements() {
      return [...this.$el.querySelectorAll(".ac-card")];
    },
    focusedCard() {
      const card = document.activeElement?.closest?.(".ac-card");
      if (!card || !this.$el.contains(card)) return null;
      return { item: card.dataset.item, rank: this.cardElements().indexOf(card), action: document.activeElement.dataset.action };
    },
    restoreFocus(was) {
      if (!was) return;
      const cards = this.cardElements();
      const card = cards.find((c) => c.dataset.item === was.item) || cards[Math.min(was.rank, cards.length - 1)];
      if (!card || card.contains(document.activeElement)) return;
      const button = was.action && card.querySelector(`[data-action=${was.action}]`);
      (button || card).focus({ preventScroll: true });
    },
    onKey(event, card) {
      if (event.target !== event.currentTarget || event.ctrlKey || event.metaKey || event.altKey) return;
      const action = ACTIONS.find((a) => a.key === event.key.toLowerCase());
      if (action) this.act(card, action.action);
      else if (event.key.toLowerCase() === "u") this.undoLast();
      else if (event.key.toLowerCase() === "w" && card.contributions.length) this.$emit("why", { item_id: card.id });
      else if (event.key === "Enter") this.open(card);
      else if (event.key.startsWith("Arrow")) this.step(event.key, event.currentTarget);
      else return;
      event.preventDefault();
    },
    step(key, from) {
      const cards = this.cardElements();
      const columns = cards.filter((c) => c.offsetTop === cards[0].offsetTop).length;
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
      cards[cards.indexOf(from) + by]?.focus();
    },
  },
};
